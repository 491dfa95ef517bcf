// Accumulators as 16-bit fragments, and where those lie in a swizzled box of shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace muon_kernels::sm90 {

template <typename Element>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<Element, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  }
}

template <typename Element>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
  if constexpr (std::is_same_v<Element, __half>) {
    return __half22float2(reinterpret_cast<const __half2&>(pair));
  } else {
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
  }
}

// Where a thread of a warpgroup finds its fragments in a swizzled box of 64 rows of 128 bytes. Fragment i of column
// pair p (16 columns) holds rows 16 warp + 8 (i & 1) + ..., columns 16 p + 8 (i >> 1) + ...
struct FragmentMap {
  uint32_t warp, lane;

  __device__ __forceinline__ uint32_t direct(int p) const {
    const uint32_t row = 16 * warp + (lane & 15);
    return row * 128 + (((2 * p + (lane >> 4)) ^ (lane & 7)) << 4);
  }
  __device__ __forceinline__ uint32_t transposed(int p) const {
    const uint32_t row = 16 * p + 8 * (lane >> 4) + (lane & 7);
    return row * 128 + (((2 * warp + ((lane >> 3) & 1)) ^ (lane & 7)) << 4);
  }
};

// The four fragments of 16 columns, from a thread's 8 accumulators of them.
template <typename Element>
__device__ __forceinline__ void pack_fragments(uint32_t (&fragments)[4], const float* part) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* pair = part + 4 * (i >> 1) + 2 * (i & 1);
    fragments[i] = pack<Element>(pair[0], pair[1]);
  }
}

}  // namespace muon_kernels::sm90
