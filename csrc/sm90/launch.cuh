// A launch of gemm_sm90_kernel as a value, so that it can be prepared once and enqueued many times.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <vector>

#include "../api.h"
#include "problem.h"

namespace muon_kernels::sm90 {

// Everything but the stream. Valid on the device that was current when it was prepared.
struct GemmLaunch {
  GemmTable table;
  const void* kernel;
  int blocks;
  int cluster;
  int shared_bytes;

  // Whether clusters have more than two tasks each, so that it matters who takes them.
  bool in_rounds() const { return table.tasks + table.parts > 2 * (blocks / cluster); }
};

// At most kMaxEntries items that share their operands' majors: encodes the table, picks the instance. Instantiated for
// each dtype and op in a source file of its own.
template <typename Element, bool kSymmetric>
cudaError_t prepare_group(const GemmItem* items, int count, int tile, GemmLaunch& launch);

// At most kMaxEntries items, with K-major A, of at most kMaxTargets matrices; the same for gemm_apply.
template <typename Param>
cudaError_t prepare_apply_group(const GemmItem* items, int count, GemmLaunch& launch);

int choose_gemm_apply_tile(const GemmItem* items, int64_t count, int multiprocessors);

// Appends the launches of one problem list.
cudaError_t prepare_gemms(bool symmetric, const GemmItem* items, int64_t count, const GemmArgs& args,
                          std::vector<GemmLaunch>& launches);

// gemm_sm90_kernel. `counter`: gives the tasks out (tasks.cuh), 0 when the launch starts, its own until it ends; null: the
// clusters have fixed shares. Not `dependent`: behind what is no kernel that releases its dependents.
cudaError_t enqueue(const GemmLaunch& launch, int* counter, cudaStream_t stream, bool dependent = true);

// gemm_apply_sm90_kernel.
cudaError_t enqueue(const GemmLaunch& launch, const ApplyTargets& targets, cudaStream_t stream);

}  // namespace muon_kernels::sm90
