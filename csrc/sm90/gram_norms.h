// Launches of gram_norms_kernel as values (launch.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "../api.h"

namespace muon_kernels::sm90 {

constexpr int64_t kNormRows = 32;  // rows of a Gram matrix in a pair of numbers

// A symmetric gram [side, side], with zeros or anything else behind its rows, and norms [2, ceil(side / kNormRows)], both
// with unit column stride: numbers whose squares add up to the square of gram's Frobenius norm, and numbers that add up to
// its trace. They tell by how much an X may be larger than divided by its Frobenius norm, from gram = XX': the matrix's
// gain is sqrt(trace / Frobenius norm), 0 if that is 0.
struct GramNormsItem {
  int64_t batch;
  int64_t side;
  MatrixBatch gram;
  MatrixBatch norms;
};

struct GramNormsEntry {
  const void* gram;
  void* norms;
  int64_t gram_batch_stride, gram_row_stride, norms_batch_stride, norms_row_stride;
  int side, parts;
  int first_block;  // blocks of the entries before this one
};

inline constexpr int kMaxGramNorms = 32;  // 2 KB of kernel parameters

struct GramNormsTable {
  GramNormsEntry entries[kMaxGramNorms];
  int count;
};

struct GramNormsLaunch {
  GramNormsTable table;
  const void* kernel;
  int blocks;
};

// Appends the launches of these items, none of them empty. `dtype`: bfloat16 or float16.
cudaError_t prepare_gram_norms(const GramNormsItem* items, int64_t count, DType dtype,
                               std::vector<GramNormsLaunch>& launches);

cudaError_t enqueue(const GramNormsLaunch& launch, cudaStream_t stream);

}  // namespace muon_kernels::sm90
