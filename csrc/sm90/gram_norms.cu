// Norms and traces of Gram matrices in parts of kNormRows rows, a block a part. Of a row only what lies left of the diagonal
// block is read, once for both triangles, and the diagonal block.
#include <vector>

#include "../dependent_launch.cuh"
#include "fragments.cuh"
#include "gain.cuh"
#include "gram_norms.h"

namespace muon_kernels::sm90 {
namespace {

constexpr int kWarps = 8;
constexpr int kRowsPerWarp = kNormRows / kWarps;

template <typename Element>
__device__ __forceinline__ float squares_of(uint4 vector) {
  float sum = 0.0f;
  for (const uint32_t pair : {vector.x, vector.y, vector.z, vector.w}) {
    const float2 x = unpack<Element>(pair);
    sum = fmaf(x.x, x.x, fmaf(x.y, x.y, sum));
  }
  return sum;
}

// Of this lane's part of `count` columns, a multiple of kNormRows, of kRows rows. All are asked for before one is used.
template <int kRows, typename Element>
__device__ __forceinline__ float squares_before(const Element* values, int64_t next_row, int count, int lane) {
  float sum = 0.0f;
#pragma unroll 2
  for (int col = 8 * lane; col < count; col += 8 * 32) {
    uint4 vectors[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) vectors[r] = *reinterpret_cast<const uint4*>(values + r * next_row + col);
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum += squares_of<Element>(vectors[r]);
  }
  return sum;
}

template <typename Element>
__global__ void __launch_bounds__(32 * kWarps) gram_norms_kernel(const __grid_constant__ GramNormsTable table) {
  grid_release_dependents();
  grid_wait_for_dependencies();
  int number = blockIdx.x, entry = 0;
  while (entry + 1 < table.count && number >= table.entries[entry + 1].first_block) ++entry;
  const GramNormsEntry& problem = table.entries[entry];
  number -= problem.first_block;
  const int64_t batch = number / problem.parts;
  const int part = number % problem.parts, first = part * static_cast<int>(kNormRows);
  const Element* const gram = static_cast<const Element*>(problem.gram) + batch * problem.gram_batch_stride;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  float left = 0.0f, diagonal = 0.0f, trace = 0.0f;
  const Element* const values = gram + (first + warp) * problem.gram_row_stride;  // and every kWarps-th row from there on
  const int64_t next_row = kWarps * problem.gram_row_stride;
  const int rows = (problem.side - first - warp + kWarps - 1) / kWarps;  // of them
  if (rows >= kRowsPerWarp) {
    left = squares_before<kRowsPerWarp>(values, next_row, first, lane);
  } else {
    for (int r = 0; r < rows; ++r) left += squares_before<1>(values + r * next_row, next_row, first, lane);
  }
  if (first + lane < problem.side) {
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      if (r >= rows) continue;
      const float value = static_cast<float>(values[r * next_row + first + lane]);
      diagonal = fmaf(value, value, diagonal);
      if (lane == warp + kWarps * r) trace = value;
    }
  }
  const BlockSums total = block_sums<kWarps>(2.0f * left + diagonal, trace);
  if (threadIdx.x == 0) {
    Element* const norms = static_cast<Element*>(problem.norms) + batch * problem.norms_batch_stride + part;
    norms[0] = static_cast<Element>(sqrtf(total.square));
    norms[problem.norms_row_stride] = static_cast<Element>(total.trace);
  }
}

}  // namespace

cudaError_t prepare_gram_norms(const GramNormsItem* items, int64_t count, DType dtype,
                               std::vector<GramNormsLaunch>& launches) {
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16) return cudaErrorInvalidValue;
  const void* const kernel = dtype == DType::kFloat16
                                 ? reinterpret_cast<const void*>(gram_norms_kernel<__half>)
                                 : reinterpret_cast<const void*>(gram_norms_kernel<__nv_bfloat16>);
  for (int64_t i = 0; i < count; ++i) {
    const GramNormsItem& item = items[i];
    if (i % kMaxGramNorms == 0) launches.push_back({{}, kernel, 0});
    GramNormsLaunch& launch = launches.back();
    const int parts = static_cast<int>((item.side + kNormRows - 1) / kNormRows);
    launch.table.entries[launch.table.count++] = {item.gram.data,           item.norms.data,
                                                  item.gram.batch_stride,   item.gram.row_stride,
                                                  item.norms.batch_stride,  item.norms.row_stride,
                                                  static_cast<int>(item.side), parts, launch.blocks};
    launch.blocks += static_cast<int>(item.batch) * parts;
  }
  return cudaSuccess;
}

cudaError_t enqueue(const GramNormsLaunch& launch, cudaStream_t stream) {
  return launch_dependent(launch.kernel, &launch.table, launch.blocks, 32 * kWarps, 0, stream);
}

}  // namespace muon_kernels::sm90
