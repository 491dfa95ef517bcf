// Loads and stores of W neighbouring elements as one vector, and conversion to and from float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

#include "layout.cuh"

namespace muon_kernels {

template <typename T, int W>
struct alignas(sizeof(T) * W) Pack {
  T value[W];
};

// A machine word as large as a pack: the unit of one load or store instruction.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned int;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};
template <class Pack>
using Word = typename WordOf<sizeof(Pack)>::type;

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

template <class Pack>
__device__ Pack load_pack(const Pack* from) {
  const Word<Pack> word = *reinterpret_cast<const Word<Pack>*>(from);
  Pack pack;
  memcpy(&pack, &word, sizeof(pack));
  return pack;
}

// What is not used again soon is the first to leave the caches.
enum class Use { kAgain, kOnce };

// __stwb is an ordinary store; written as an assignment, the compiler breaks some vectors into words.
template <Use kUse = Use::kAgain, class Pack>
__device__ void store_pack(Pack* to, const Pack& pack) {
  Word<Pack> word;
  memcpy(&word, &pack, sizeof(pack));
  if constexpr (kUse == Use::kOnce) {
    __stcs(reinterpret_cast<Word<Pack>*>(to), word);
  } else {
    __stwb(reinterpret_cast<Word<Pack>*>(to), word);
  }
}

// Operand J of a span; elements that do not exist read as 0.
template <typename T, int W, int J, Use kUse = Use::kAgain, class Span>
__device__ Pack<T, W> load(const void* data, const Span& span) {
  Word<Pack<T, W>> word{};
  if (span.exists) {
    const auto* from = reinterpret_cast<const decltype(word)*>(static_cast<const T*>(data) + span.offset(J));
    word = kUse == Use::kOnce ? __ldcs(from) : *from;
  }
  Pack<T, W> pack;
  memcpy(&pack, &word, sizeof(pack));
  return pack;
}

template <typename T, int W, int J, Use kUse = Use::kAgain, class Span>
__device__ void store(void* data, const Span& span, const Pack<T, W>& pack) {
  if (span.exists) store_pack<kUse>(reinterpret_cast<Pack<T, W>*>(static_cast<T*>(data) + span.offset(J)), pack);
}

}  // namespace muon_kernels
