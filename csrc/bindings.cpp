// Every launcher of api.h by itself: lists of tensors or tuples of integers in, structs of api.h out, errors to exceptions.
// Pointers and streams arrive as integers, so the module needs no torch to build or to import.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "api.h"
#include "python.h"
#include "tensor_list.h"
#include "wave.h"

namespace muon_kernels {
namespace {

// ---- prologue ----------------------------------------------------------------------------------------------------------

struct Prologue {
  Prologue(const py::list& grads, const py::list& momenta, const py::list& outs) {
    args.grad_dtype = common_dtype(grads, "grads");
    args.momentum_dtype = common_dtype(momenta, "momenta");
    args.out_dtype = common_dtype(outs, "outs");
    items.reserve(grads.size());
    for (size_t i = 0; i < grads.size(); ++i) {
      const auto [rows, cols, views] =
          as_matrices<3>({read_tensor(grads[i]), read_tensor(momenta[i]), read_tensor(outs[i])},
                         "grads, momenta and outs", i);
      items.push_back({rows, cols, views[0], views[1], views[2]});
    }
  }

  int64_t partials() const { return prologue_partials(items.data(), static_cast<int64_t>(items.size()), args); }

  void launch(double momentum, bool nesterov, bool ema, bool maximize, int64_t grad_scale, int64_t found_inf,
              int64_t sumsq, int64_t scratch, int64_t stream) {
    set_prologue(args, momentum, nesterov, ema, maximize, grad_scale, found_inf, sumsq, scratch);
    check(launch_prologue(items.data(), static_cast<int64_t>(items.size()), args, stream_of(stream)));
  }

  std::vector<PrologueItem> items;
  PrologueArgs args{};
};

void bind_prologue(py::module_& m) {
  py::class_<Prologue>(m, "Prologue", py::module_local())
      .def(py::init<const py::list&, const py::list&, const py::list&>(), py::arg("grads"), py::arg("momenta"),
           py::arg("outs"))
      .def("partials", &Prologue::partials)
      .def("launch", &Prologue::launch, py::arg("momentum"), py::arg("nesterov"), py::arg("ema"), py::arg("maximize"),
           py::arg("grad_scale"), py::arg("found_inf"), py::arg("sumsq"), py::arg("partials"), py::arg("stream"));
}

// ---- sum_squares -------------------------------------------------------------------------------------------------------

struct SumSquares {
  explicit SumSquares(const py::list& xs) : dtype(common_dtype(xs, "xs")) {
    for (const py::handle object : xs) {
      const Problem x(object);
      items.push_back({x.batch, x.rows, x.cols, x.data});
    }
  }

  int64_t partials() const { return sum_squares_partials(items.data(), static_cast<int64_t>(items.size()), dtype); }

  void launch(int64_t sumsq, int64_t scratch, int64_t stream) const {
    check(launch_sum_squares(items.data(), static_cast<int64_t>(items.size()), dtype, pointer<double>(sumsq),
                             pointer<double>(scratch), stream_of(stream)));
  }

  DType dtype;
  std::vector<SumSquaresItem> items;
};

void bind_sum_squares(py::module_& m) {
  py::class_<SumSquares>(m, "SumSquares", py::module_local())
      .def(py::init<const py::list&>(), py::arg("xs"))
      .def("partials", &SumSquares::partials)
      .def("launch", &SumSquares::launch, py::arg("sumsq"), py::arg("partials"), py::arg("stream"));
}

// ---- normalize ---------------------------------------------------------------------------------------------------------

struct Normalize {
  Normalize(const py::list& xs, const py::list& outs) {
    args.x_dtype = common_dtype(xs, "xs");
    args.out_dtype = common_dtype(outs, "outs");
    for (size_t i = 0; i < xs.size(); ++i) {
      const Problem x(xs[i]), out(outs[i]);
      items.push_back({x.batch,
                       x.rows,
                       x.cols,
                       {x.data.data, x.data.row_stride, x.data.col_stride},
                       {out.data.data, out.data.row_stride, out.data.col_stride},
                       x.data.batch_stride,
                       out.data.batch_stride});
    }
  }

  int64_t scratch() const { return normalize_scratch(items.data(), static_cast<int64_t>(items.size()), args); }

  void launch(int64_t sumsq, int64_t scratch, double eps, double safety_factor, int64_t stream) {
    args.sumsq = pointer<const double>(sumsq);
    args.scratch = pointer<double>(scratch);
    args.eps = eps;
    args.safety_factor = safety_factor;
    check(launch_normalize(items.data(), static_cast<int64_t>(items.size()), args, stream_of(stream)));
  }

  std::vector<NormalizeItem> items;
  NormalizeArgs args{};
};

void bind_normalize(py::module_& m) {
  py::class_<Normalize>(m, "Normalize", py::module_local())
      .def(py::init<const py::list&, const py::list&>(), py::arg("xs"), py::arg("outs"))
      .def("scratch", &Normalize::scratch)
      .def("launch", &Normalize::launch, py::arg("sumsq"), py::arg("scratch"), py::arg("eps"),
           py::arg("safety_factor"), py::arg("stream"));
}

// ---- apply -------------------------------------------------------------------------------------------------------------

void apply(const py::list& params, const py::list& updates, const std::vector<double>& scales, double weight_decay,
           double lr, int64_t lr_device, bool lr_device_float64, int64_t found_inf, int64_t stream) {
  std::vector<ApplyItem> items;
  items.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const auto [rows, cols, views] =
        as_matrices<2>({read_tensor(params[i]), read_tensor(updates[i])}, "params and updates", i);
    items.push_back({rows, cols, views[0], views[1], scales.at(i)});
  }
  const ApplyArgs args = apply_args(common_dtype(params, "params"), common_dtype(updates, "updates"), weight_decay, lr, lr_device,
                                    lr_device_float64, found_inf);
  check(launch_apply(items.data(), static_cast<int64_t>(items.size()), args, stream_of(stream)));
}

void bind_elementwise(py::module_& m) {
  m.def("apply", &apply, py::arg("params"), py::arg("updates"), py::arg("scales"), py::arg("weight_decay"), py::arg("lr"),
        py::arg("lr_device"), py::arg("lr_device_float64"), py::arg("found_inf"), py::arg("stream"));
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
        const ApplyArgs args = apply_args(static_cast<DType>(param_dtype), DType::kFloat16, weight_decay, lr, lr_device,
                                          lr_device_float64, found_inf);
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
    for (int64_t j = 0; j < chains[i + 1]; ++j, product += 9, scalar += 3) {
      item.products.push_back({static_cast<ProductKind>(product[0]),
                               operand(product[1]),
                               operand(product[2]),
                               operand(product[3]),
                               operand(product[4]),
                               operand(product[5]),
                               static_cast<float>(scalar[0]),
                               static_cast<float>(scalar[1]),
                               static_cast<float>(scalar[2]),
                               {static_cast<int>(product[6]), static_cast<int>(product[7]), static_cast<int>(product[8])}});
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
  m.doc() = "CUDA launchers of muon_kernels: tensors and integers in, nothing checked. Use muon_kernels.ops.";
  muon_kernels::bind_tensor_list(m);
  muon_kernels::bind_prologue(m);
  muon_kernels::bind_sum_squares(m);
  muon_kernels::bind_normalize(m);
  muon_kernels::bind_elementwise(m);
  muon_kernels::bind_products(m);
  muon_kernels::bind_chains(m);
  muon_kernels::bind_wave(m);
}
