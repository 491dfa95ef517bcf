// What a grouped product launch passes to the device, by value: one entry per list item, each a batch of products
// out[i] = alpha * alpha_device[i] * A[i] B[i] + beta * C[i] + delta * I, with A [m, k], B [k, n] and C, out [m, n].
#pragma once

#include <cuda.h>

namespace muon_kernels::sm90 {

inline constexpr int kMaxEntries = 16;  // 9.5 KB of kernel parameters

struct GemmEntry {
  CUtensorMap a, b, c, out;
  const float* alpha_device;  // one factor per matrix, or null
  int m, n, k;
  int tasks_per_matrix;      // a task is what one cluster computes at a time
  int first_task;            // number of tasks of the entries before this one
};

struct GemmTable {
  GemmEntry entries[kMaxEntries];
  int count;
  int tasks;
  float alpha, beta, delta;
  bool has_c;
};

}  // namespace muon_kernels::sm90
