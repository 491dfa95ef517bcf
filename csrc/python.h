// What the bindings share: tensors, addresses and errors between Python and api.h.
//
// Tensors are read without torch's headers and without the time that their attributes take in Python: through the C
// functions that torch.Tensor offers as `__dlpack_c_exchange_api__` (torch 2.10 and later). The structs are those of
// DLPack 1, https://dmlc.github.io/dlpack/latest/c_api.html, as far as they are used.
#pragma once

#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "api.h"

namespace muon_kernels {

namespace py = pybind11;

inline void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error));
  }
}

template <typename T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

inline cudaStream_t stream_of(int64_t address) { return pointer<CUstream_st>(address); }

namespace dlpack {

struct Tensor {
  void* data;
  int32_t device_type;
  int32_t device_id;
  int32_t ndim;
  uint8_t dtype_code;
  uint8_t dtype_bits;
  uint16_t dtype_lanes;
  int64_t* shape;    // the tensor's own
  int64_t* strides;  // likewise
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major;
  uint32_t minor;
  ExchangeApi* previous;
  void* allocate;
  void* to_managed;
  void* from_managed;
  int (*to_tensor)(void* object, Tensor* out);  // 0, or -1 and a Python exception
  void* current_stream;
};

inline const ExchangeApi& exchange_api() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<const ExchangeApi*> kept;
  kept.call_once_and_store_result([] {
    const py::object offered = py::module_::import("torch").attr("Tensor").attr("__dlpack_c_exchange_api__");
    const auto* found = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(offered.ptr(), "dlpack_exchange_api"));
    if (!found) throw py::error_already_set();
    if (found->major != 1 || !found->to_tensor) {
      throw std::runtime_error("torch.Tensor's DLPack functions are of version " + std::to_string(found->major) +
                               ", expected 1");
    }
    return found;
  });
  return *kept.get_stored();
}

}  // namespace dlpack

// Of an object that is known to be a tensor. Shape and strides point into it.
inline dlpack::Tensor read_tensor(py::handle object) {
  dlpack::Tensor tensor;
  if (dlpack::exchange_api().to_tensor(object.ptr(), &tensor)) throw py::error_already_set();
  return tensor;
}

// Of one of a list's tensors; an error says the list's `name`.
inline DType dtype_of(const dlpack::Tensor& tensor, const char* name) {
  constexpr uint8_t kFloat = 2, kBFloat = 4;
  if (tensor.dtype_code == kFloat && tensor.dtype_bits == 32) return DType::kFloat32;
  if (tensor.dtype_code == kFloat && tensor.dtype_bits == 16) return DType::kFloat16;
  if (tensor.dtype_code == kBFloat && tensor.dtype_bits == 16) return DType::kBFloat16;
  throw py::type_error(std::string(name) + " must be float32, bfloat16 or float16 for the CUDA kernels");
}

// Of a list that holds one dtype.
inline DType common_dtype(const py::list& tensors, const char* name) { return dtype_of(read_tensor(tensors[0]), name); }

inline void* data_of(const dlpack::Tensor& tensor) { return static_cast<char*>(tensor.data) + tensor.byte_offset; }

// A [batch, rows, cols].
struct Problem {
  explicit Problem(py::handle object) {
    const dlpack::Tensor tensor = read_tensor(object);
    batch = tensor.shape[0];
    rows = tensor.shape[1];
    cols = tensor.shape[2];
    data = {data_of(tensor), tensor.strides[0], tensor.strides[1], tensor.strides[2]};
  }
  int64_t batch, rows, cols;
  MatrixBatch data;
};

// Of everything but dtypes and items, in the order in which Python gives it.
inline void set_prologue(PrologueArgs& args, double momentum, bool nesterov, bool ema, bool maximize, int64_t grad_scale,
                         int64_t found_inf, int64_t sumsq, int64_t partials) {
  args.momentum = static_cast<float>(momentum);
  args.one_minus_momentum = static_cast<float>(1.0 - momentum);
  args.nesterov = nesterov;
  args.ema = ema;
  args.maximize = maximize;
  args.grad_scale = pointer<const float>(grad_scale);
  args.found_inf = pointer<const float>(found_inf);
  args.sumsq = pointer<double>(sumsq);
  args.partials = pointer<double>(partials);
}

inline ApplyArgs apply_args(DType param_dtype, DType update_dtype, double weight_decay, double lr, int64_t lr_device,
                            bool lr_device_float64, int64_t found_inf) {
  return {param_dtype,       update_dtype, weight_decay, lr, pointer<const void>(lr_device),
          lr_device_float64, pointer<const float>(found_inf)};
}

constexpr int kMaxDims = 64;  // torch's own bound

template <size_t N>
std::string strides_of(const std::array<dlpack::Tensor, N>& tensors) {
  std::string text;
  for (const dlpack::Tensor& tensor : tensors) {
    text += text.empty() ? "(" : ", (";
    for (int d = 0; d < tensor.ndim; ++d) text += (d ? ", " : "") + std::to_string(tensor.strides[d]);
    text += ")";
  }
  return text;
}

// N tensors of one shape, seen as matrices.
template <size_t N>
struct Matrices {
  int64_t rows;
  int64_t cols;
  std::array<MatrixView, N> views;
};

// Dimensions are dropped (size 1), sorted (by the first tensor's strides) and merged where that is possible for all
// tensors at once: the order of elements is kept between the tensors, not within. An error says `names` and `index`.
template <size_t N>
Matrices<N> as_matrices(const std::array<dlpack::Tensor, N>& tensors, const char* names, size_t index) {
  struct Dim {
    int64_t size;
    std::array<int64_t, N> strides;
  };
  Dim dims[kMaxDims];
  int count = 0;
  for (int d = 0; d < tensors[0].ndim; ++d) {
    if (tensors[0].shape[d] == 1) continue;
    dims[count].size = tensors[0].shape[d];
    for (size_t t = 0; t < N; ++t) dims[count].strides[t] = tensors[t].strides[d];
    ++count;
  }
  const auto outer_first = [](const Dim& x, const Dim& y) { return x.strides[0] > y.strides[0]; };
  if (!std::is_sorted(dims, dims + count, outer_first)) std::stable_sort(dims, dims + count, outer_first);
  int merged = 0;
  for (int d = 0; d < count; ++d) {
    bool continues = merged > 0;
    for (size_t t = 0; continues && t < N; ++t) {
      continues = dims[merged - 1].strides[t] == dims[d].size * dims[d].strides[t];
    }
    if (continues) {
      dims[merged - 1] = {dims[merged - 1].size * dims[d].size, dims[d].strides};
    } else {
      dims[merged++] = dims[d];
    }
  }
  const bool empty = std::any_of(dims, dims + merged, [](const Dim& dim) { return dim.size == 0; });
  if (merged > 2 && !empty) {
    throw py::value_error(std::string(names) + " at index " + std::to_string(index) +
                          " must merge into at most two dimensions, got strides " + strides_of(tensors));
  }
  Dim inner{1, {}}, outer{1, {}};
  if (merged > 0) inner = dims[merged - 1];
  if (merged > 1) outer = dims[0];
  Matrices<N> found{empty ? 1 : outer.size, empty ? 0 : inner.size, {}};
  for (size_t t = 0; t < N; ++t) {
    const int64_t row_stride = merged > 1 ? outer.strides[t] : inner.size * inner.strides[t];
    found.views[t] = {data_of(tensors[t]), row_stride, inner.strides[t]};
  }
  return found;
}

}  // namespace muon_kernels
