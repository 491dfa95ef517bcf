// The warpgroup matrix instruction: D[64, N] += A[64, 16] B[16, N], A and B in shared memory, D in registers, fp32.
//
// Thread t of a warpgroup holds of D: row 16 (t / 32) + t % 32 / 4 + 8 h, column 8 j + 2 (t % 4) + e in element
// 4 j + 2 h + e. Operands lie in shared memory in the 128-byte swizzle, in groups of 8 rows of 128 bytes,
// aligned to 1024:
//   K-major:  a row is 64 consecutive k of one m or n; groups of 8 m or n follow each other; 16 k further are 32 bytes.
//   MN-major: a row is 64 consecutive m or n of one k; groups of 8 k follow each other; 16 k further are 2048 bytes;
//             the next 64 m or n are one whole box further, of kTileK rows or as many as one likes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace muon_kernels::sm90 {

enum class Major : int { kK = 0, kMN = 1 };

inline constexpr int kTileK = 64;                   // one 128-byte row of 16-bit elements
inline constexpr uint32_t kBoxBytes = kTileK * 128;  // 64 m or n by kTileK, in either major

// Matrix descriptor of the operand whose first element lies at `address`; `box_bytes`: from a box to the next.
template <Major kMajor>
__device__ __forceinline__ uint64_t operand_descriptor(uint32_t address, uint32_t box_bytes = kBoxBytes) {
  constexpr uint64_t kSwizzle128 = 1ull << 62;
  constexpr uint64_t kGroupStride = static_cast<uint64_t>(1024 >> 4) << 32;
  // Not read if K-major.
  const uint64_t box_stride = static_cast<uint64_t>(kMajor == Major::kMN ? box_bytes >> 4 : 1) << 16;
  return kSwizzle128 | kGroupStride | box_stride | ((address & 0x3FFFF) >> 4);
}

// What to add to a descriptor to advance by 16 along k.
template <Major kMajor>
inline constexpr uint64_t kStepK16 = (kMajor == Major::kMN ? 2048 : 32) >> 4;

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving reads or writes of the accumulators across this point.
template <int kCount>
__device__ __forceinline__ void pin_registers(float* d) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Inline assembly numbers its operands: the accumulators first (MUON_D*, their places MUON_P*), then the descriptors of
// A and B and the two majors.
#define MUON_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MUON_D16(i) MUON_D4(i), MUON_D4(i + 4), MUON_D4(i + 8), MUON_D4(i + 12)
#define MUON_D32(i) MUON_D16(i), MUON_D16(i + 16)
#define MUON_D64(i) MUON_D32(i), MUON_D32(i + 32)
#define MUON_P0 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MUON_P32 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47," \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MUON_P64 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79," \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define MUON_P96 \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111," \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define MUON_WGMMA(N, TYPE, ACCUMULATORS, PLACES, A, B, TA, TB)                                                   \
  asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                                        \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #TYPE "." #TYPE " {" PLACES "}, " A ", " B ", p, " \
               "1, 1, " TA ", " TB ";\n}"                                                                          \
               : ACCUMULATORS                                                                                     \
               : "l"(a), "l"(b), "n"(static_cast<int>(kMajorA)), "n"(static_cast<int>(kMajorB)))
#define MUON_WGMMA_N(TYPE)                                                                                       \
  if constexpr (kN == 64)                                                                                        \
    MUON_WGMMA(64, TYPE, MUON_D32(0), MUON_P0, "%32", "%33", "%34", "%35");                                 \
  else if constexpr (kN == 128)                                                                                  \
    MUON_WGMMA(128, TYPE, MUON_D64(0), MUON_P0 "," MUON_P32, "%64", "%65", "%66", "%67");                   \
  else if constexpr (kN == 192)                                                                                  \
    MUON_WGMMA(192, TYPE, MUON_D64(0) MUON_COMMA MUON_D32(64), MUON_P0 "," MUON_P32 "," MUON_P64, "%96", "%97",    \
               "%98", "%99");                                                                            \
  else                                                                                                           \
    MUON_WGMMA(256, TYPE, MUON_D64(0) MUON_COMMA MUON_D64(64), MUON_P0 "," MUON_P32 "," MUON_P64 "," MUON_P96,     \
               "%128", "%129", "%130", "%131")
#define MUON_COMMA ,

// D += A B. `d` is an array of kN / 2 registers.
template <typename Element, Major kMajorA, Major kMajorB, int kN>
__device__ __forceinline__ void wgmma(float* d, uint64_t a, uint64_t b) {
  static_assert(kN == 64 || kN == 128 || kN == 192 || kN == 256);
  if constexpr (std::is_same_v<Element, __half>) {
    MUON_WGMMA_N(f16);
  } else {
    MUON_WGMMA_N(bf16);
  }
}

#undef MUON_COMMA
#undef MUON_WGMMA_N
#undef MUON_WGMMA
#undef MUON_P0
#undef MUON_P32
#undef MUON_P64
#undef MUON_P96
#undef MUON_D64
#undef MUON_D32
#undef MUON_D16
#undef MUON_D4

}  // namespace muon_kernels::sm90
