// What a grouped product launch passes to the device, by value: one entry per list item, each a batch of products
// out = alpha A B + beta C + delta I, with A [m, k], B [k, n] and C, out [m, n].
#pragma once

#include <cuda.h>

#include <cstdint>

#include "../api.h"

namespace muon_kernels::sm90 {

inline constexpr int kMaxEntries = 8;  // 5 KB of kernel parameters

struct GemmEntry {
  CUtensorMap a, b, c, out;
  int m, n, k;
  float alpha, beta, delta;
  const void* norms;  // as in GemmItem; parts: of each of its two rows
  int norms_batch_stride, norms_row_stride, norms_parts;
  int powers[3];
  bool has_c;
  int tasks, first_task;   // what a cluster computes at a time: number per matrix, and in the entries before this one
  int parts, first_part;   // the same of tiles of half the width (walk.cuh)
  int first_target;        // number of matrices in the entries before this one
};

struct GemmTable {
  GemmEntry entries[kMaxEntries];
  int count;
  int tasks, parts;  // parts: smaller tiles, which come last (walk.cuh)
};

// Where gemm_apply writes: a matrix whose columns are neighbours in memory.
struct ApplyTarget {
  void* data;
  int64_t row_stride;
  double scale;
};

inline constexpr int kMaxTargets = 512;  // 12 KB of kernel parameters

struct ApplyTargets {
  ApplyTarget list[kMaxTargets];  // of all matrices of all entries
  ApplyArgs args;
  bool overwrite;
};

}  // namespace muon_kernels::sm90
