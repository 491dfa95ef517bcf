// Launches gemm_sm90_kernel on items that share their operands' majors: encodes the table, picks the instance.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../api.h"
#include "problem.h"

namespace muon_kernels::sm90 {

// At most kMaxEntries items. Instantiated for each dtype and op in a source file of its own.
template <typename Element, bool kSymmetric>
cudaError_t launch_group(const GemmItem* items, int count, int tile, cudaStream_t stream);

}  // namespace muon_kernels::sm90
