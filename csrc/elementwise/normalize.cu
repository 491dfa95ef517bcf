// normalize: out <- x / max(safety_factor * sqrt(sumsq), eps), for a list of matrices, each with its own sum of squares.
//
// One block per chunk, one pass over memory: reads x, writes out. The factor is computed in float64 and rounded to fp32; it
// is 0 for a norm below fp32's smallest normal number and NaN for one that is not finite. A table holds 1019 dense or 453
// strided matrices; longer lists take several launches.
// Limits: at most 2^31 - 1 chunks of 4096 elements per matrix; operands must not overlap each other.

#include <cfloat>
#include <cstdint>

#include "dispatch.cuh"
#include "launch.cuh"
#include "pack.cuh"
#include "table.cuh"
#include "walk.cuh"

namespace muon_kernels {
namespace {

__device__ float factor(double sumsq, const NormalizeArgs& args) {
  const double norm = args.safety_factor * sqrt(sumsq);
  if (!isfinite(norm)) return NAN;
  return norm < FLT_MIN ? 0.0f : static_cast<float>(1.0 / fmax(norm, args.eps));
}

template <typename X, typename O>
class Normalize {
 public:
  template <int W>
  struct Input {
    Pack<X, W> x;
  };

  __device__ Normalize(float factor, void* const (&data)[2]) : data_(data), factor_(factor) {}

  template <int W, class Span>
  __device__ Input<W> load(const Span& span) const {
    return {muon_kernels::load<X, W, 0>(data_[0], span)};
  }

  template <int W, class Span>
  __device__ void finish(const Span& span, const Input<W>& input) const {
    Pack<O, W> out;
#pragma unroll
    for (int i = 0; i < W; ++i) out.value[i] = from_float<O>(to_float(input.x.value[i]) * factor_);
    store<O, W, 1>(data_[1], span, out);
  }

 private:
  void* const (&data_)[2];
  const float factor_;
};

// Payload: the matrix's index in the list.
template <typename X, typename O, class View>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    normalize_kernel(const __grid_constant__ Table<View, uint32_t> table, const __grid_constant__ NormalizeArgs args) {
  const int t = table.find(blockIdx.x);
  const View& view = table.view(t);
  const uint32_t chunk = blockIdx.x - table.first_block[t];
  grid_release_dependents();
  grid_wait_for_dependencies();  // nothing above touches memory that another kernel writes
  const Normalize<X, O> op(factor(args.sumsq[table.payload[t]], args), view.data);
  walk_chunk<2>(view, chunk, op);
}

template <typename X, typename O>
cudaError_t launch_typed(const NormalizeItem* items, int64_t count, const NormalizeArgs& args, cudaStream_t stream) {
  const auto launch_table = [&](const auto& table, uint32_t blocks) {
    return launch(normalize_kernel<X, O, typename std::decay_t<decltype(table)>::ViewType>, blocks, stream, table, args);
  };
  MultiTensorLaunch<uint32_t, decltype(launch_table), X, O> tensors(launch_table);
  uint32_t matrix = 0;
  for (const NormalizeItem* item = items; item < items + count; ++item) {
    for (int64_t i = 0; i < item->batch; ++i, ++matrix) {
      const MatrixView x{static_cast<X*>(item->x.data) + i * item->x_batch_stride, item->x.row_stride,
                         item->x.col_stride};
      const MatrixView out{static_cast<O*>(item->out.data) + i * item->out_batch_stride, item->out.row_stride,
                           item->out.col_stride};
      const Matrices<X, O> matrices(item->rows, item->cols, {x, out});
      const cudaError_t error = matrices.visit([&](const auto& view) { return tensors.add(view, matrix); });
      if (error != cudaSuccess) return error;
    }
  }
  return tensors.finish();
}

}  // namespace

cudaError_t launch_normalize(const NormalizeItem* items, int64_t count, const NormalizeArgs& args,
                             cudaStream_t stream) {
  return with_type(args.x_dtype, [&](auto x) {
    return with_type(args.out_dtype, [&](auto o) {
      return launch_typed<typename decltype(x)::type, typename decltype(o)::type>(items, count, args, stream);
    });
  });
}

}  // namespace muon_kernels
