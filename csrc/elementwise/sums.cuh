// Sums that are the same on every run: thread, then warp, then block, then the blocks of a tensor, always in one order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "launch.cuh"
#include "table.cuh"

namespace muon_kernels {

// The sum over the block in thread 0, in a fixed order.
__device__ inline double block_sum(double value) {
  __shared__ double warp_sum[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  if (threadIdx.x % 32 == 0) warp_sum[threadIdx.x / 32] = value;
  __syncthreads();
  value = warp_sum[0];
  for (int w = 1; w < kThreads / 32; ++w) value += warp_sum[w];
  return value;
}

struct Segments {
  static constexpr int kCapacity = (kTableBytes - 16) / sizeof(uint32_t) - 1;
  uint32_t first[kCapacity + 1];  // tensor t owns partials first[t] .. first[t + 1] - 1
};

static __global__ void __launch_bounds__(kThreads)
    sum_partials_kernel(const __grid_constant__ Segments segments, const double* partials, double* sumsq) {
  constexpr int kBatch = 16;  // loads in flight: a tensor of 2^24 elements needs one round trip
  const uint32_t end = segments.first[blockIdx.x + 1];
  grid_release_dependents();
  grid_wait_for_dependencies();
  double sum = 0.0;
  for (uint32_t base = segments.first[blockIdx.x] + threadIdx.x; base < end; base += kBatch * kThreads) {
    double value[kBatch];
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) value[i] = base + i * kThreads < end ? partials[base + i * kThreads] : 0.0;
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) sum += value[i];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sumsq[blockIdx.x] = sum;
}

// first_partial: tensor t owns partials first_partial[t] .. first_partial[t + 1] - 1.
inline cudaError_t sum_partials(const std::vector<uint32_t>& first_partial, const double* partials, double* sumsq,
                                cudaStream_t stream) {
  const int64_t count = static_cast<int64_t>(first_partial.size()) - 1;
  for (int64_t begin = 0; begin < count; begin += Segments::kCapacity) {
    const int64_t size = std::min<int64_t>(count - begin, Segments::kCapacity);
    Segments segments;
    std::copy_n(first_partial.begin() + begin, size + 1, segments.first);
    const cudaError_t error = launch(sum_partials_kernel, static_cast<uint32_t>(size), stream, segments,
                                     partials, sumsq + begin);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace muon_kernels
