// One block's walk over its chunk: load a batch of spans, then finish them, so that several loads are in flight.
#pragma once

#include <type_traits>

#include "layout.cuh"

namespace muon_kernels {

// Blocks per multiprocessor that kernels ask for: without it ptxas aims higher and spills to get there.
constexpr int kMinBlocks = 3;

// Op provides Input<W>, load<W>(span) -> Input<W> and finish<W>(span, input).
template <int W, class View, class Op>
__device__ void walk_chunk(const View& view, uint32_t chunk, Op&& op) {
  const int spans = view.template spans<W>(chunk);
  constexpr int kBatch = W > 1 ? 2 : 4;
#pragma unroll 1
  for (int base = 0; base < spans; base += kBatch) {
    typename View::Span span[kBatch];
    typename std::decay_t<Op>::template Input<W> input[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      span[i] = view.template span<W>(chunk, (base + i) * kThreads + threadIdx.x);
      input[i] = op.template load<W>(span[i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) op.template finish<W>(span[i], input[i]);
  }
  if constexpr (W > 1) {
    const auto rest = view.template rest<W>(chunk);
    if (rest.exists) {
      auto input = op.template load<1>(rest);
      op.template finish<1>(rest, input);
    }
  }
}

}  // namespace muon_kernels
