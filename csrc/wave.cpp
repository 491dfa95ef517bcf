// The launches of one wave behind a single call from Python: list by list, reading and checking the tensors of a small model
// takes longer than its kernels run. WaveStep steps parameters, WaveOrthogonalize returns the orthogonalised matrices.
#include "wave.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "api.h"
#include "python.h"
#include "tensor_list.h"

namespace muon_kernels {
namespace {

constexpr int64_t kElementSize = 2;

// A buffer of muon_kernels/program.py: a batch of row-major matrices, counted in elements of the workspace.
struct Buffer {
  MatrixBatch in(int64_t workspace) const {
    return {pointer<void>(workspace + kElementSize * offset), batch_stride, row_stride, 1};
  }

  int64_t offset, batch, rows, cols, batch_stride, row_stride;
};

using BufferFields = std::array<int64_t, 6>;

std::vector<Buffer> buffers(const std::vector<BufferFields>& list) {
  std::vector<Buffer> found;
  for (const BufferFields& f : list) found.push_back({f[0], f[1], f[2], f[3], f[4], f[5]});
  return found;
}

// What the shapes of a wave decide. For each of its groups: where the matrices lie normalised, and the factors of the
// orthogonalised ones, P [side, side] and X [rows, cols]: P X, or X P' of tall ones.
struct Wave {
  // outs: of every matrix where its last product goes. scales: of every matrix.
  std::vector<GemmApplyItem> last_products(int64_t workspace, const MatrixView* outs, const double* scales) const {
    std::vector<GemmApplyItem> products;
    for (size_t g = 0; g < xs.size(); ++g) {
      const Buffer& x = xs[g];
      const bool tall = x.rows > x.cols;
      const MatrixBatch square = ps[g].in(workspace), wide_or_tall = x.in(workspace);
      const MatrixBatch transposed{square.data, square.batch_stride, square.col_stride, square.row_stride};
      products.push_back({x.batch, x.rows, x.cols, ps[g].rows, tall ? wide_or_tall : square,
                          tall ? transposed : wide_or_tall, outs, scales, 1.0f});
      outs += x.batch;
      scales += x.batch;
    }
    return products;
  }

  Chains& chains;
  std::vector<Buffer> normalised, ps, xs;
};

// Whether last products can write matrices of x: the operand with the rows that are written must lie along them, which X'
// does not.
bool writable(const Buffer& x, const MatrixView* outs) {
  const auto all_unit = [&](int64_t MatrixView::*stride) {
    return std::all_of(outs, outs + x.batch, [stride](const MatrixView& out) { return out.*stride == 1; });
  };
  return all_unit(&MatrixView::col_stride) || (x.rows > x.cols && all_unit(&MatrixView::row_stride));
}

// A step of a wave: its tensors are known, nothing is launched yet. float16 chains; until they are normalised, matrices lie
// there in bfloat16, as float16 has too little range.
class WaveStep {
 public:
  // order: the numbers of the wave's matrices in the lists, of which each has one dtype for them.
  WaveStep(Wave& wave, const std::vector<int64_t>& order, const TensorList& grads, const TensorList& momenta,
           const TensorList& params, std::vector<double> scales)
      : wave_(wave), scales_(std::move(scales)), param_dtype_(dtype_of(params[order.at(0)], "params")) {
    prologue_.grad_dtype = dtype_of(grads[order[0]], "grads");
    prologue_.momentum_dtype = dtype_of(momenta[order[0]], "momenta");
    prologue_.out_dtype = DType::kBFloat16;
    matrices_.reserve(order.size());
    params_.reserve(order.size());
    const int64_t* number = order.data();
    for (const Buffer& x : wave.normalised) {
      for (int64_t i = 0; i < x.batch; ++i, ++number) add_matrix(x, i, grads[*number], momenta[*number], params[*number]);
      fits_ = fits_ && writable(x, params_.data() + params_.size() - x.batch);
    }
  }

  // Whether the last products can write the parameters, and no matrix is too large for prologue_normalize.
  bool fits() const { return fits_ && param_dtype_ != DType::kFloat16; }

  // Number of doubles that `launch` wants as scratch memory.
  int64_t scratch() const {
    return prologue_normalize_scratch(matrices_.data(), static_cast<int64_t>(matrices_.size()), prologue_);
  }

  void launch(double momentum, bool nesterov, bool maximize, int64_t grad_scale, double eps, double safety_factor,
              double weight_decay, double lr, int64_t lr_device, bool lr_device_float64, int64_t found_inf, int64_t workspace,
              int64_t scratch, int64_t stream_address) {
    const cudaStream_t stream = stream_of(stream_address);
    set_prologue(prologue_, momentum, nesterov, /*ema=*/true, maximize, grad_scale, found_inf, /*sumsq=*/0, scratch);
    const NormalizeArgs norm{DType::kBFloat16, DType::kFloat16, /*sumsq=*/nullptr, /*scratch=*/nullptr, eps, safety_factor};
    std::vector<PrologueItem> matrices = matrices_;
    for (PrologueItem& matrix : matrices) matrix.out.data = static_cast<char*>(matrix.out.data) + workspace;
    check(launch_prologue_normalize(matrices.data(), static_cast<int64_t>(matrices.size()), prologue_, norm, stream));

    check(wave_.chains.launch(DType::kFloat16, pointer<void>(workspace), stream));

    const std::vector<GemmApplyItem> products = wave_.last_products(workspace, params_.data(), scales_.data());
    const ApplyArgs step = apply_args(param_dtype_, DType::kFloat16, weight_decay, lr, lr_device, lr_device_float64, found_inf);
    check(launch_gemm_apply_sm90(products.data(), static_cast<int64_t>(products.size()), step, false, stream));
  }

 private:
  void add_matrix(const Buffer& x, int64_t i, const dlpack::Tensor& grad, const dlpack::Tensor& momentum,
                  const dlpack::Tensor& param) {
    int64_t shape[] = {x.rows, x.cols}, strides[] = {x.row_stride, 1};
    dlpack::Tensor out{};  // from the start of the workspace, which `launch` knows
    out.byte_offset = kElementSize * (x.offset + i * x.batch_stride);
    out.ndim = 2;
    out.shape = shape;
    out.strides = strides;
    const auto [rows, cols, views] = as_matrices<3>({grad, momentum, out}, "grads and momenta", matrices_.size());
    matrices_.push_back({rows, cols, views[0], views[1], views[2]});
    fits_ = fits_ && rows * cols <= kLargestMatrix;
    params_.push_back({data_of(param), param.strides[0], param.strides[1]});
  }

  Wave& wave_;
  std::vector<double> scales_;
  DType param_dtype_;
  PrologueArgs prologue_{};
  std::vector<PrologueItem> matrices_;
  std::vector<MatrixView> params_;
  bool fits_ = true;
};

// `orthogonalize` of a wave: problem lists of its groups in the order of the plan; nothing is launched yet. float16 chains.
class WaveOrthogonalize {
 public:
  WaveOrthogonalize(Wave& wave, const py::list& xs, const py::list& outs)
      : wave_(wave), out_dtype_(common_dtype(outs, "outs")) {
    norm_.x_dtype = common_dtype(xs, "xs");
    norm_.out_dtype = DType::kFloat16;
    for (size_t g = 0; g < wave.normalised.size(); ++g) {
      const Buffer& to = wave.normalised[g];
      const Problem x(xs[g]), out(outs[g]);
      // From the start of the workspace, which `launch` knows.
      const MatrixView normalised{pointer<void>(kElementSize * to.offset), to.row_stride, 1};
      matrices_.push_back({x.batch, x.rows, x.cols, {x.data.data, x.data.row_stride, x.data.col_stride}, normalised,
                           x.data.batch_stride, to.batch_stride});
      const int64_t distance = out.data.batch_stride * (out_dtype_ == DType::kFloat32 ? 4 : 2);
      for (int64_t i = 0; i < out.batch; ++i) {
        outs_.push_back({static_cast<char*>(out.data.data) + i * distance, out.data.row_stride, out.data.col_stride});
      }
      fits_ = fits_ && writable(to, outs_.data() + outs_.size() - out.batch);
    }
  }

  // Whether the last products can write the results.
  bool fits() const { return fits_ && out_dtype_ != DType::kFloat16; }

  // Number of doubles that `launch` wants as scratch memory, on the current device.
  int64_t scratch() const { return normalize_scratch(matrices_.data(), static_cast<int64_t>(matrices_.size()), norm_); }

  void launch(double eps, double safety_factor, int64_t workspace, int64_t scratch, int64_t stream_address) {
    const cudaStream_t stream = stream_of(stream_address);
    norm_.scratch = pointer<double>(scratch);
    norm_.eps = eps;
    norm_.safety_factor = safety_factor;
    std::vector<NormalizeItem> matrices = matrices_;
    for (NormalizeItem& matrix : matrices) matrix.out.data = static_cast<char*>(matrix.out.data) + workspace;
    check(launch_normalize(matrices.data(), static_cast<int64_t>(matrices.size()), norm_, stream));

    check(wave_.chains.launch(DType::kFloat16, pointer<void>(workspace), stream));

    const std::vector<double> scales(outs_.size(), 0.0);
    const std::vector<GemmApplyItem> products = wave_.last_products(workspace, outs_.data(), scales.data());
    const ApplyArgs overwritten{out_dtype_, DType::kFloat16, 0.0, 0.0, nullptr, false, nullptr};
    check(launch_gemm_apply_sm90(products.data(), static_cast<int64_t>(products.size()), overwritten, true, stream));
  }

 private:
  Wave& wave_;
  DType out_dtype_;
  NormalizeArgs norm_{};
  std::vector<NormalizeItem> matrices_;
  std::vector<MatrixView> outs_;
  bool fits_ = true;
};

}  // namespace

void bind_wave(py::module_& m) {
  py::class_<Wave>(m, "Wave", py::module_local())
      .def(py::init([](Chains& chains, const std::vector<BufferFields>& normalised, const std::vector<BufferFields>& ps,
                       const std::vector<BufferFields>& xs) {
             return std::make_unique<Wave>(Wave{chains, buffers(normalised), buffers(ps), buffers(xs)});
           }),
           py::arg("chains"), py::arg("normalised"), py::arg("ps"), py::arg("xs"), py::keep_alive<1, 2>());
  py::class_<WaveStep>(m, "WaveStep", py::module_local())
      .def(py::init<Wave&, const std::vector<int64_t>&, const TensorList&, const TensorList&, const TensorList&,
                    std::vector<double>>(),
           py::arg("wave"), py::arg("order"), py::arg("grads"), py::arg("momenta"), py::arg("params"), py::arg("scales"),
           py::keep_alive<1, 2>())
      .def("fits", &WaveStep::fits)
      .def("scratch", &WaveStep::scratch)
      .def("launch", &WaveStep::launch, py::arg("momentum"), py::arg("nesterov"), py::arg("maximize"),
           py::arg("grad_scale"), py::arg("eps"), py::arg("safety_factor"), py::arg("weight_decay"), py::arg("lr"),
           py::arg("lr_device"), py::arg("lr_device_float64"), py::arg("found_inf"), py::arg("workspace"),
           py::arg("scratch"), py::arg("stream"));
  py::class_<WaveOrthogonalize>(m, "WaveOrthogonalize", py::module_local())
      .def(py::init<Wave&, const py::list&, const py::list&>(), py::arg("wave"), py::arg("xs"), py::arg("outs"),
           py::keep_alive<1, 2>())
      .def("fits", &WaveOrthogonalize::fits)
      .def("scratch", &WaveOrthogonalize::scratch)
      .def("launch", &WaveOrthogonalize::launch, py::arg("eps"), py::arg("safety_factor"), py::arg("workspace"),
           py::arg("scratch"), py::arg("stream"));
}

}  // namespace muon_kernels
