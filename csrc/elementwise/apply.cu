// apply: p <- p * (1 - lr * weight_decay) - lr * scale * update, for a list of tensors.
//
// One block per chunk, one pass over memory: reads param and update, writes param. The two factors are computed in float64
// and rounded to fp32; the arithmetic per element is fp32 with one rounding to the parameter dtype at the end. A table
// holds 906 dense or 429 strided tensors; longer lists take several launches.
// Limits: at most 2^31 - 1 chunks of 4096 elements per tensor; operands must not overlap each other.

#include <cstdint>

#include "../parameter_step.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "pack.cuh"
#include "table.cuh"
#include "walk.cuh"

namespace muon_kernels {
namespace {

template <typename P, typename U>
class Apply {
 public:
  template <int W>
  struct Input {
    Pack<P, W> param;
    Pack<U, W> update;
  };

  __device__ Apply(float decay, float step, void* const (&data)[2]) : data_(data), decay_(decay), step_(step) {}

  template <int W, class Span>
  __device__ Input<W> load(const Span& span) const {
    return {muon_kernels::load<P, W, 0>(data_[0], span), muon_kernels::load<U, W, 1>(data_[1], span)};
  }

  template <int W, class Span>
  __device__ void finish(const Span& span, Input<W>& input) const {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const float p = to_float(input.param.value[i]);
      input.param.value[i] = from_float<P>(stepped(p, decay_, step_, to_float(input.update.value[i])));
    }
    store<P, W, 0>(data_[0], span, input.param);
  }

 private:
  void* const (&data_)[2];
  const float decay_;
  const float step_;
};

// Payload: the tensor's scale.
template <typename P, typename U, class View>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    apply_kernel(const __grid_constant__ Table<View, double> table, const __grid_constant__ ApplyArgs args) {
  const int t = table.find(blockIdx.x);
  const View& view = table.view(t);
  const uint32_t chunk = blockIdx.x - table.first_block[t];
  grid_release_dependents();
  grid_wait_for_dependencies();  // nothing above touches memory that another kernel writes
  const ParameterStep step(args);
  if (step.skip) return;
  const Apply<P, U> op(step.decay, step.step(table.payload[t]), view.data);
  walk_chunk<2>(view, chunk, op);
}

template <typename P, typename U>
cudaError_t launch_typed(const ApplyItem* items, int64_t count, const ApplyArgs& args, cudaStream_t stream) {
  const auto launch_table = [&](const auto& table, uint32_t blocks) {
    return launch(apply_kernel<P, U, typename std::decay_t<decltype(table)>::ViewType>, blocks, stream, table, args);
  };
  MultiTensorLaunch<double, decltype(launch_table), P, U> tensors(launch_table);
  for (int64_t i = 0; i < count; ++i) {
    const ApplyItem& item = items[i];
    const Matrices<P, U> matrices(item.rows, item.cols, {item.param, item.update});
    const cudaError_t error = matrices.visit([&](const auto& view) { return tensors.add(view, item.scale); });
    if (error != cudaSuccess) return error;
  }
  return tensors.finish();
}

}  // namespace

cudaError_t launch_apply(const ApplyItem* items, int64_t count, const ApplyArgs& args, cudaStream_t stream) {
  return with_type(args.param_dtype, [&](auto p) {
    return with_type(args.update_dtype, [&](auto u) {
      return launch_typed<typename decltype(p)::type, typename decltype(u)::type>(items, count, args, stream);
    });
  });
}

}  // namespace muon_kernels
