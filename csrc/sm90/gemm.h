// The products of the sm90 backend: host surface of gemm_sm90_kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace muon_kernels {

// A batch of matrices. One of the two strides is 1; strides count elements.
struct MatrixBatch {
  void* data;
  int64_t batch_stride, row_stride, col_stride;
};

struct GemmItem {
  int64_t batch, m, n, k;
  MatrixBatch a, b, c, out;  // c.data is null in every item or in none
  const float* alpha;        // one device factor per matrix, or null
};

struct GemmArgs {
  bool half;  // fp16, else bf16
  float alpha, beta, delta;
  int tile;  // index into the tile list of launch.cuh, or -1: choose_tile decides
};

// out = alpha A B + beta C + delta I, known to be symmetric.
cudaError_t launch_symm_gemm_sm90(const GemmItem* items, int64_t count, const GemmArgs& args, cudaStream_t stream);

// out = alpha A B + beta C.
cudaError_t launch_gemm_add_sm90(const GemmItem* items, int64_t count, const GemmArgs& args, cudaStream_t stream);

}  // namespace muon_kernels
