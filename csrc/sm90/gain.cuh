// The gain of a Gram matrix (GramNormsItem of gram_norms.h) from its parts, and what multiplies by powers of it.
#pragma once

#include <cstdint>

#include "problem.h"

namespace muon_kernels::sm90 {

// In every lane, in an order that is always the same.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

struct BlockSums {
  float square, trace;
};

// Over a block of kWarps warps, in every thread, in an order that is always the same. Between two calls the block must meet.
template <int kWarps>
__device__ __forceinline__ BlockSums block_sums(float square, float trace) {
  __shared__ float sums[2][kWarps];
  square = warp_sum(square);
  trace = warp_sum(trace);
  if (threadIdx.x % 32 == 0) sums[0][threadIdx.x / 32] = square, sums[1][threadIdx.x / 32] = trace;
  __syncthreads();
  BlockSums total{0.0f, 0.0f};
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total.square += sums[0][warp], total.trace += sums[1][warp];
  return total;
}

__device__ __forceinline__ float gain_from(float squared_norm, float trace) {
  return squared_norm == 0.0f ? 0.0f : sqrtf(trace / sqrtf(squared_norm));
}

// Of a product's matrix, in every lane of a warp; the bits depend on the matrix alone.
template <typename Element>
__device__ __forceinline__ float gain_of(const GemmEntry& problem, int batch, uint32_t lane) {
  const Element* const norms =
      static_cast<const Element*>(problem.norms) + static_cast<int64_t>(batch) * problem.norms_batch_stride;
  float square = 0.0f, trace = 0.0f;
  for (int i = lane; i < problem.norms_parts; i += 32) {
    const float norm = static_cast<float>(norms[i]);
    square = fmaf(norm, norm, square);
    trace += static_cast<float>(norms[problem.norms_row_stride + i]);
  }
  return gain_from(warp_sum(square), warp_sum(trace));
}

// power(0, 0) is 1.
__device__ __forceinline__ float power(float base, int exponent) {
  float result = 1.0f;
  for (int i = 0; i < exponent; ++i) result *= base;
  return result;
}

}  // namespace muon_kernels::sm90
