// The only file that knows Python: tuples of integers in, structs of api.h out, cudaError_t to exceptions. No logic.
// Pointers, streams and dtypes arrive as integers, so the module needs no torch to build or to import.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "api.h"

PYBIND11_MAKE_OPAQUE(std::vector<muon_kernels::PrologueItem>);

namespace muon_kernels {
namespace {

namespace py = pybind11;

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error));
  }
}

template <typename T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

cudaStream_t stream_of(int64_t address) { return pointer<CUstream_st>(address); }

// ---- prologue ----------------------------------------------------------------------------------------------------------

// rows, cols, the pointers of grad, momentum and out, then row stride and column stride of each.
using PrologueFields = std::array<int64_t, 11>;

std::vector<PrologueItem> prologue_items(const std::vector<PrologueFields>& list) {
  std::vector<PrologueItem> items;
  items.reserve(list.size());
  for (const PrologueFields& f : list) {
    items.push_back({f[0],
                     f[1],
                     {pointer<void>(f[2]), f[5], f[6]},
                     {pointer<void>(f[3]), f[7], f[8]},
                     {pointer<void>(f[4]), f[9], f[10]}});
  }
  return items;
}

void bind_prologue(py::module_& m) {
  using Items = std::vector<PrologueItem>;
  py::class_<Items>(m, "PrologueItems", py::module_local()).def(py::init(&prologue_items), py::arg("items"));

  m.def(
      "prologue_partials",
      [](const Items& items, int grad_dtype, int momentum_dtype, int out_dtype) {
        PrologueArgs args{};
        args.grad_dtype = static_cast<DType>(grad_dtype);
        args.momentum_dtype = static_cast<DType>(momentum_dtype);
        args.out_dtype = static_cast<DType>(out_dtype);
        return prologue_partials(items.data(), static_cast<int64_t>(items.size()), args);
      },
      py::arg("items"), py::arg("grad_dtype"), py::arg("momentum_dtype"), py::arg("out_dtype"));

  m.def(
      "prologue",
      [](const Items& items, int grad_dtype, int momentum_dtype, int out_dtype, double momentum, bool nesterov, bool ema,
         bool maximize, int64_t grad_scale, int64_t found_inf, int64_t sumsq, int64_t partials, int64_t stream) {
        const PrologueArgs args{static_cast<DType>(grad_dtype),
                                static_cast<DType>(momentum_dtype),
                                static_cast<DType>(out_dtype),
                                static_cast<float>(momentum),
                                static_cast<float>(1.0 - momentum),
                                nesterov,
                                ema,
                                maximize,
                                pointer<const float>(grad_scale),
                                pointer<const float>(found_inf),
                                pointer<double>(sumsq),
                                pointer<double>(partials)};
        check(launch_prologue(items.data(), static_cast<int64_t>(items.size()), args, stream_of(stream)));
      },
      py::arg("items"), py::arg("grad_dtype"), py::arg("momentum_dtype"), py::arg("out_dtype"), py::arg("momentum"),
      py::arg("nesterov"), py::arg("ema"), py::arg("maximize"), py::arg("grad_scale"), py::arg("found_inf"),
      py::arg("sumsq"), py::arg("partials"), py::arg("stream"));
}

// ---- sum_squares -------------------------------------------------------------------------------------------------------

// batch, rows, cols, then pointer, batch stride, row stride and column stride.
using SumSquaresFields = std::array<int64_t, 7>;

void bind_sum_squares(py::module_& m) {
  using Items = std::vector<SumSquaresItem>;
  const auto items_of = [](const std::vector<SumSquaresFields>& list) {
    Items items;
    items.reserve(list.size());
    for (const SumSquaresFields& f : list) items.push_back({f[0], f[1], f[2], {pointer<void>(f[3]), f[4], f[5], f[6]}});
    return items;
  };
  m.def(
      "sum_squares_partials",
      [items_of](const std::vector<SumSquaresFields>& list, int x_dtype) {
        const Items items = items_of(list);
        return sum_squares_partials(items.data(), static_cast<int64_t>(items.size()), static_cast<DType>(x_dtype));
      },
      py::arg("items"), py::arg("x_dtype"));

  m.def(
      "sum_squares",
      [items_of](const std::vector<SumSquaresFields>& list, int x_dtype, int64_t sumsq, int64_t partials,
                 int64_t stream) {
        const Items items = items_of(list);
        check(launch_sum_squares(items.data(), static_cast<int64_t>(items.size()), static_cast<DType>(x_dtype),
                                 pointer<double>(sumsq), pointer<double>(partials), stream_of(stream)));
      },
      py::arg("items"), py::arg("x_dtype"), py::arg("sumsq"), py::arg("partials"), py::arg("stream"));
}

// ---- normalize ---------------------------------------------------------------------------------------------------------

// batch, rows, cols, then pointer, batch stride, row stride and column stride of x and out.
using NormalizeFields = std::array<int64_t, 11>;

void bind_normalize(py::module_& m) {
  m.def(
      "normalize",
      [](const std::vector<NormalizeFields>& list, int x_dtype, int out_dtype, int64_t sumsq, double eps,
         double safety_factor, int64_t stream) {
        std::vector<NormalizeItem> items;
        items.reserve(list.size());
        for (const NormalizeFields& f : list) {
          items.push_back(
              {f[0], f[1], f[2], {pointer<void>(f[3]), f[5], f[6]}, {pointer<void>(f[7]), f[9], f[10]}, f[4], f[8]});
        }
        const NormalizeArgs args{static_cast<DType>(x_dtype), static_cast<DType>(out_dtype),
                                 pointer<const double>(sumsq), eps, safety_factor};
        check(launch_normalize(items.data(), static_cast<int64_t>(items.size()), args, stream_of(stream)));
      },
      py::arg("items"), py::arg("x_dtype"), py::arg("out_dtype"), py::arg("sumsq"), py::arg("eps"),
      py::arg("safety_factor"), py::arg("stream"));
}

// ---- apply -------------------------------------------------------------------------------------------------------------

// rows, cols, the pointers of param and update, then row stride and column stride of each.
using ApplyFields = std::array<int64_t, 8>;

void bind_apply(py::module_& m) {
  m.def(
      "apply",
      [](const std::vector<ApplyFields>& list, const std::vector<double>& scales, int param_dtype, int update_dtype,
         double weight_decay, double lr, int64_t lr_device, bool lr_device_float64, int64_t found_inf, int64_t stream) {
        std::vector<ApplyItem> items;
        items.reserve(list.size());
        for (size_t i = 0; i < list.size(); ++i) {
          const ApplyFields& f = list[i];
          items.push_back(
              {f[0], f[1], {pointer<void>(f[2]), f[4], f[5]}, {pointer<void>(f[3]), f[6], f[7]}, scales.at(i)});
        }
        const ApplyArgs args{static_cast<DType>(param_dtype),
                             static_cast<DType>(update_dtype),
                             weight_decay,
                             lr,
                             pointer<const void>(lr_device),
                             lr_device_float64,
                             pointer<const float>(found_inf)};
        check(launch_apply(items.data(), static_cast<int64_t>(items.size()), args, stream_of(stream)));
      },
      py::arg("items"), py::arg("scales"), py::arg("param_dtype"), py::arg("update_dtype"), py::arg("weight_decay"),
      py::arg("lr"), py::arg("lr_device"), py::arg("lr_device_float64"), py::arg("found_inf"), py::arg("stream"));
}

// ---- products ----------------------------------------------------------------------------------------------------------

// batch, m, n, k, then pointer, batch stride, row stride and column stride of a, b, c and out.
using GemmFields = std::array<int64_t, 20>;

// batch, m, n, k, then pointer, batch stride, row stride and column stride of a and b.
using GemmApplyFields = std::array<int64_t, 12>;

// Pointer, row stride and column stride.
using ParamFields = std::array<int64_t, 3>;

std::vector<GemmItem> gemm_items(const std::vector<GemmFields>& list, double alpha, double beta, double delta) {
  std::vector<GemmItem> items;
  items.reserve(list.size());
  for (const GemmFields& f : list) {
    const auto matrices = [&f](int i) { return MatrixBatch{pointer<void>(f[i]), f[i + 1], f[i + 2], f[i + 3]}; };
    items.push_back({f[0], f[1], f[2], f[3], matrices(4), matrices(8), matrices(12), matrices(16),
                     static_cast<float>(alpha), static_cast<float>(beta), static_cast<float>(delta)});
  }
  return items;
}

void bind_products(py::module_& m) {
  m.def(
      "gemm",
      [](bool symmetric, const std::vector<GemmFields>& list, int dtype, double alpha, double beta, double delta,
         int tile, int64_t stream) {
        const std::vector<GemmItem> items = gemm_items(list, alpha, beta, delta);
        const GemmArgs args{static_cast<DType>(dtype), tile};
        const auto launch = symmetric ? launch_symm_gemm_sm90 : launch_gemm_add_sm90;
        check(launch(items.data(), static_cast<int64_t>(items.size()), args, stream_of(stream)));
      },
      py::arg("symmetric"), py::arg("items"), py::arg("dtype"), py::arg("alpha"), py::arg("beta"), py::arg("delta"),
      py::arg("tile"), py::arg("stream"));

  m.def(
      "gemm_apply",
      [](const std::vector<GemmApplyFields>& list, const std::vector<ParamFields>& params,
         const std::vector<double>& scales, int param_dtype, double alpha, bool overwrite, double weight_decay,
         double lr, int64_t lr_device, bool lr_device_float64, int64_t found_inf, int64_t stream) {
        std::vector<MatrixView> views;
        views.reserve(params.size());
        for (const ParamFields& f : params) views.push_back({pointer<void>(f[0]), f[1], f[2]});
        std::vector<GemmApplyItem> items;
        items.reserve(list.size());
        size_t first = 0;
        for (const GemmApplyFields& f : list) {
          const auto matrices = [&f](int i) { return MatrixBatch{pointer<void>(f[i]), f[i + 1], f[i + 2], f[i + 3]}; };
          // Not `at`: an empty batch may end the list.
          items.push_back({f[0], f[1], f[2], f[3], matrices(4), matrices(8), views.data() + first,
                           scales.data() + first, static_cast<float>(alpha)});
          first += static_cast<size_t>(f[0]);
        }
        const ApplyArgs args{static_cast<DType>(param_dtype),
                             DType::kFloat16,
                             weight_decay,
                             lr,
                             pointer<const void>(lr_device),
                             lr_device_float64,
                             pointer<const float>(found_inf)};
        check(launch_gemm_apply_sm90(items.data(), static_cast<int64_t>(items.size()), args, overwrite,
                                     stream_of(stream)));
      },
      py::arg("items"), py::arg("params"), py::arg("scales"), py::arg("param_dtype"), py::arg("alpha"),
      py::arg("overwrite"), py::arg("weight_decay"), py::arg("lr"), py::arg("lr_device"), py::arg("lr_device_float64"), py::arg("found_inf"),
      py::arg("stream"));

  m.def(
      "choose_gemm_tile",
      [](bool symmetric, const std::vector<GemmFields>& list, int multiprocessors) {
        const std::vector<GemmItem> items = gemm_items(list, 1.0, 0.0, 0.0);
        return choose_gemm_tile(symmetric, items.data(), static_cast<int64_t>(items.size()), multiprocessors);
      },
      py::arg("symmetric"), py::arg("items"), py::arg("multiprocessors"));
}

// ---- chains ------------------------------------------------------------------------------------------------------------

// The flat lists of muon_kernels/program.py.
ChainOperand operand(int64_t code) { return {code < 0 ? -1 : static_cast<int>(code / 2), code >= 0 && code % 2 == 1}; }

std::vector<ChainItem> chain_items(const std::vector<int64_t>& buffers, const std::vector<int64_t>& products,
                                   const std::vector<double>& scalars, const std::vector<int64_t>& chains) {
  std::vector<ChainItem> items;
  const int64_t* buffer = buffers.data();
  const int64_t* product = products.data();
  const double* scalar = scalars.data();
  for (size_t i = 0; i < chains.size(); i += 2) {
    ChainItem item{chains[i] > 0 ? buffer[1] : 0, {}, {}};
    for (int64_t j = 0; j < chains[i]; ++j, buffer += 6) {
      item.buffers.push_back({buffer[0], buffer[2], buffer[3], buffer[4], buffer[5]});
    }
    for (int64_t j = 0; j < chains[i + 1]; ++j, product += 5, scalar += 3) {
      item.products.push_back({product[0] != 0, operand(product[1]), operand(product[2]), operand(product[3]),
                               operand(product[4]), static_cast<float>(scalar[0]), static_cast<float>(scalar[1]),
                               static_cast<float>(scalar[2])});
    }
    items.push_back(std::move(item));
  }
  return items;
}

void bind_chains(py::module_& m) {
  py::class_<Chains>(m, "Chains", py::module_local())
      .def(py::init([](const std::vector<int64_t>& buffers, const std::vector<int64_t>& products,
                       const std::vector<double>& scalars, const std::vector<int64_t>& chains) {
             return std::make_unique<Chains>(chain_items(buffers, products, scalars, chains));
           }),
           py::arg("buffers"), py::arg("products"), py::arg("scalars"), py::arg("chains"))
      .def(
          "launch",
          [](Chains& self, int dtype, int64_t workspace, int64_t stream) {
            check(self.launch(static_cast<DType>(dtype), pointer<void>(workspace), stream_of(stream)));
          },
          py::arg("dtype"), py::arg("workspace"), py::arg("stream"));
}

}  // namespace
}  // namespace muon_kernels

PYBIND11_MODULE(_C, m) {
  m.doc() = "CUDA launchers of muon_kernels: integers in, nothing checked. Use muon_kernels.ops.";
  muon_kernels::bind_prologue(m);
  muon_kernels::bind_sum_squares(m);
  muon_kernels::bind_normalize(m);
  muon_kernels::bind_apply(m);
  muon_kernels::bind_products(m);
  muon_kernels::bind_chains(m);
}
