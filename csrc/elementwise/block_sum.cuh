// A sum over the threads of a block that is the same on every run.
#pragma once

#include <cstdint>

#include "layout.cuh"

namespace muon_kernels {

// The sum over a block of kThreads by kGroups threads, in the threads of its first warp, in a fixed order.
template <int kGroups = 1>
__device__ inline double block_sum(double value) {
  constexpr int kWarps = kGroups * kThreads / 32;
  __shared__ double warp_sum[kWarps];
  const uint32_t warp = ((kGroups == 1 ? 0 : threadIdx.y * kThreads) + threadIdx.x) / 32;
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  if (threadIdx.x % 32 == 0) warp_sum[warp] = value;
  __syncthreads();
  if (warp > 0) return value;
  value = warp_sum[0];
  for (int w = 1; w < kWarps; ++w) value += warp_sum[w];
  return value;
}

}  // namespace muon_kernels
