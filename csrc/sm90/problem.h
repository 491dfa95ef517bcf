// What the product kernels are told, by value, as kernel parameters.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace muon_kernels::sm90 {

// One batch of products: out[i] = alpha * factors[i] * A[i] B[i] + beta * C[i] + delta * I, with A [m, k], B [k, n] and C, out
// [m, n]. Null pointers stand for what is absent.
struct Product {
  const CUtensorMap *a, *b, *c, *out;
  const float* factors;  // one per matrix, on the device
  int m, n, k;
  float alpha, beta, delta;
};

// ---- one list of independent products, the same factors for all ------------------------------------------------------

inline constexpr int kMaxEntries = 16;  // 9.5 KB of kernel parameters

struct GemmEntry {
  CUtensorMap a, b, c, out;
  const float* factors;
  int m, n, k;
  int tasks, first_task;   // what a cluster computes at a time: number per matrix, and in the entries before this one
  int halves, first_half;  // the same of the tiles of half the width (walk.cuh)
};

struct GemmTable {
  GemmEntry entries[kMaxEntries];
  int count;
  int tasks, halves;
  float alpha, beta, delta;
  bool has_c;
};

// ---- chains of products, each for a batch of matrices -----------------------------------------------------------------

inline constexpr int kMaxBuffers = 96, kMaxLinks = 256, kMaxChains = 32;  // 24.8 KB
inline constexpr uint8_t kNoBuffer = 255;

enum class LinkKind : uint8_t { kSymmetric, kSymmetricMN, kFull, kFullMN };  // MN: B, or both operands, MN-major

struct ChainLink {
  uint8_t a, b, c, out;  // which of the table's buffers
  LinkKind kind;
  int m, n, k;
  int tasks;        // per matrix
  uint32_t needed;  // stores that earlier links make to a matrix; they must be complete
  float alpha, beta, delta;
};

struct Chain {
  int batch;
  int band;  // matrices that go through the whole chain side by side
  int first_link, links;
  int first_matrix;  // in `done`
};

struct ChainTable {
  CUtensorMap buffers[kMaxBuffers];
  ChainLink links[kMaxLinks];
  Chain chains[kMaxChains];
  int count;
  uint32_t* done;  // per matrix: stores that are complete; zero before the launch
};

}  // namespace muon_kernels::sm90
