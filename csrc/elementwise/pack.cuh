// Loads and stores of W neighbouring elements as one vector, and conversion to and from float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "layout.cuh"

namespace muon_kernels {

template <typename T, int W>
struct alignas(sizeof(T) * W) Pack {
  T value[W];
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

// Round to nearest even; fp16 overflows to infinity as torch's conversion does.
template <typename T>
__device__ T from_float(float x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(x);
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(x);
  if constexpr (std::is_same_v<T, float>) return x;
}

// Operand J of a span; elements outside [begin, end) read as 0.
template <typename T, int W, int J, class Span>
__device__ Pack<T, W> load(const void* data, const Span& span) {
  const T* p = static_cast<const T*>(data) + span.offset(J);
  if (span.begin == 0 && span.end == W) return *reinterpret_cast<const Pack<T, W>*>(p);
  Pack<T, W> pack;
#pragma unroll
  for (int i = 0; i < W; ++i) pack.value[i] = i >= span.begin && i < span.end ? p[i] : from_float<T>(0.0f);
  return pack;
}

template <typename T, int W, int J, class Span>
__device__ void store(void* data, const Span& span, const Pack<T, W>& pack) {
  T* p = static_cast<T*>(data) + span.offset(J);
  if (span.begin == 0 && span.end == W) {
    *reinterpret_cast<Pack<T, W>*>(p) = pack;
    return;
  }
#pragma unroll
  for (int i = 0; i < W; ++i) {
    if (i >= span.begin && i < span.end) p[i] = pack.value[i];
  }
}

}  // namespace muon_kernels
