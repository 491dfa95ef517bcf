// What the two product kernels' launchers share, and how the public launchers reach the instances of each.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "../api.h"
#include "problem.h"

namespace muon_kernels::sm90 {

inline int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

template <typename Element>
constexpr CUtensorMapDataType tensor_map_type() {
  return std::is_same_v<Element, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

// gemm_sm90_kernel on at most kMaxEntries items that share their operands' majors. Instantiated for each dtype and op in
// a source file of its own.
template <typename Element, bool kSymmetric>
cudaError_t launch_group(const GemmItem* items, int count, const GemmArgs& args, cudaStream_t stream);

// chain_sm90_kernel on a table that is complete but for the numbers of tasks and stores, which depend on the tile shape.
// Instantiated for each dtype in a source file of its own.
template <typename Element>
cudaError_t launch_chain_table(ChainTable& table, int tile, cudaStream_t stream);

}  // namespace muon_kernels::sm90
