// The launches of one wave behind a single call from Python: list by list, reading and checking the tensors of a small model
// takes longer than its kernels run.
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

namespace muon_kernels {
namespace {

constexpr int64_t kElementSize = 2;

// A buffer of muon_kernels/program.py: a batch of row-major matrices, counted in elements of the workspace.
struct Buffer {
  MatrixBatch in(void* workspace) const {
    return {static_cast<char*>(workspace) + kElementSize * offset, batch_stride, row_stride, 1};
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
  Chains& chains;
  std::vector<Buffer> normalised, ps, xs;
};

// A step of a wave: its tensors are read, nothing is launched yet. float16 chains; until they are normalised, matrices lie
// there in bfloat16, as float16 has too little range.
class WaveStep {
 public:
  WaveStep(Wave& wave, const py::list& grads, const py::list& momenta, const py::list& params, std::vector<double> scales,
           int64_t workspace)
      : wave_(wave), workspace_(pointer<void>(workspace)), scales_(std::move(scales)), param_dtype_(common_dtype(params, "params")) {
    prologue_.grad_dtype = common_dtype(grads, "grads");
    prologue_.momentum_dtype = common_dtype(momenta, "momenta");
    prologue_.out_dtype = DType::kBFloat16;
    for (const Buffer& x : wave.normalised) {
      for (int64_t i = 0; i < x.batch; ++i) add_matrix(x, i, grads, momenta, params);
    }
    MatrixView* first = params_.data();
    for (size_t g = 0; g < wave.xs.size(); ++g) {
      add_product(wave.ps[g], wave.xs[g], first);
      first += wave.xs[g].batch;
    }
  }

  // Whether the last products can write the parameters, and no matrix is too large for prologue_normalize.
  bool fits() const { return fits_ && param_dtype_ != DType::kFloat16; }

  // Number of doubles that `launch` wants as scratch memory.
  int64_t scratch() const {
    return prologue_normalize_scratch(matrices_.data(), static_cast<int64_t>(matrices_.size()), prologue_);
  }

  void launch(double momentum, bool nesterov, bool maximize, int64_t grad_scale, double eps, double safety_factor,
              double weight_decay, double lr, int64_t lr_device, bool lr_device_float64, int64_t found_inf, int64_t scratch,
              int64_t stream_address) {
    const cudaStream_t stream = stream_of(stream_address);
    set_prologue(prologue_, momentum, nesterov, /*ema=*/true, maximize, grad_scale, found_inf, /*sumsq=*/0, scratch);
    const NormalizeArgs norm{DType::kBFloat16, DType::kFloat16, /*sumsq=*/nullptr, /*scratch=*/nullptr, eps, safety_factor};
    check(launch_prologue_normalize(matrices_.data(), static_cast<int64_t>(matrices_.size()), prologue_, norm, stream));

    check(wave_.chains.launch(DType::kFloat16, workspace_, stream));

    const ApplyArgs step = apply_args(param_dtype_, DType::kFloat16, weight_decay, lr, lr_device, lr_device_float64, found_inf);
    check(launch_gemm_apply_sm90(products_.data(), static_cast<int64_t>(products_.size()), step, false, stream));
  }

 private:
  void add_matrix(const Buffer& x, int64_t i, const py::list& grads, const py::list& momenta, const py::list& params) {
    const size_t n = matrices_.size();
    const MatrixBatch batch = x.in(workspace_);
    int64_t shape[] = {x.rows, x.cols}, strides[] = {batch.row_stride, batch.col_stride};
    dlpack::Tensor out{};
    out.data = static_cast<char*>(batch.data) + kElementSize * i * batch.batch_stride;
    out.ndim = 2;
    out.shape = shape;
    out.strides = strides;
    const auto [rows, cols, views] =
        as_matrices<3>({read_tensor(grads[n]), read_tensor(momenta[n]), out}, "grads and momenta", n);
    matrices_.push_back({rows, cols, views[0], views[1], views[2]});
    fits_ = fits_ && rows * cols <= kLargestMatrix;
    const dlpack::Tensor param = read_tensor(params[n]);
    params_.push_back({data_of(param), param.strides[0], param.strides[1]});
  }

  // The operand with the rows that are written must lie along them, which X' does not.
  void add_product(const Buffer& p, const Buffer& x, MatrixView* params) {
    const bool tall = x.rows > x.cols;
    const auto all_unit = [&](int64_t MatrixView::*stride) {
      return std::all_of(params, params + x.batch, [stride](const MatrixView& param) { return param.*stride == 1; });
    };
    fits_ = fits_ && (all_unit(&MatrixView::col_stride) || (tall && all_unit(&MatrixView::row_stride)));
    const MatrixBatch square = p.in(workspace_), wide_or_tall = x.in(workspace_);
    const MatrixBatch transposed{square.data, square.batch_stride, square.col_stride, square.row_stride};
    products_.push_back({x.batch, x.rows, x.cols, p.rows, tall ? wide_or_tall : square, tall ? transposed : wide_or_tall,
                         params, scales_.data() + (params - params_.data()), 1.0f});
  }

  Wave& wave_;
  void* workspace_;
  std::vector<double> scales_;
  DType param_dtype_;
  PrologueArgs prologue_{};
  std::vector<PrologueItem> matrices_;
  std::vector<MatrixView> params_;
  std::vector<GemmApplyItem> products_;
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
      .def(py::init<Wave&, const py::list&, const py::list&, const py::list&, std::vector<double>, int64_t>(),
           py::arg("wave"), py::arg("grads"), py::arg("momenta"), py::arg("params"), py::arg("scales"),
           py::arg("workspace"), py::keep_alive<1, 2>())
      .def("fits", &WaveStep::fits)
      .def("scratch", &WaveStep::scratch)
      .def("launch", &WaveStep::launch, py::arg("momentum"), py::arg("nesterov"), py::arg("maximize"),
           py::arg("grad_scale"), py::arg("eps"), py::arg("safety_factor"), py::arg("weight_decay"), py::arg("lr"),
           py::arg("lr_device"), py::arg("lr_device_float64"), py::arg("found_inf"), py::arg("scratch"),
           py::arg("stream"));
}

}  // namespace muon_kernels
