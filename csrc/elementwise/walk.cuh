// One block's walk over its chunk: load a batch of spans, then finish them, so that several loads are in flight.
#pragma once

#include <type_traits>

#include "layout.cuh"

namespace muon_kernels {

// Blocks per multiprocessor that kernels ask for: without it ptxas aims higher and spills to get there.
constexpr int kMinBlocks = 3;

// Elements `begin` to `end` of a chunk, in steps of kThreads * W * kBatch.
template <int W, int kBatch, class View, class Op>
__device__ __forceinline__ void walk(const View& view, uint32_t chunk, int begin, int end, Op&& op) {
#pragma unroll 1
  for (int base = begin; base < end; base += kThreads * W * kBatch) {
    typename View::Span span[kBatch];
    typename std::decay_t<Op>::template Input<W> input[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      span[i] = view.template span<W>(chunk, base + (i * kThreads + threadIdx.x) * W);
      input[i] = op.template load<W>(span[i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) op.template finish<W>(span[i], input[i]);
  }
}

// Op provides Input<W>, load<W>(span) -> Input<W> and finish<W>(span, input). kVectors: loaded at a time by a thread.
template <int kVectors, class View, class Op>
__device__ void walk_chunk(const View& view, uint32_t chunk, Op&& op) {
  const bool vectorised = view.vectorised(chunk);
  if (vectorised) walk<View::kWidth, kVectors>(view, chunk, 0, kChunk, op);
  walk<1, 4>(view, chunk, vectorised ? kChunk : 0, view.size(chunk), op);
}

}  // namespace muon_kernels
