// Host side of gemm_sm90_kernel: sorts items by operand majors, fills tables of at most kMaxEntries, and launches.
#pragma once

#include <algorithm>
#include <vector>

#include "gemm.h"
#include "kernel.cuh"
#include "tensor_map.h"

namespace muon_kernels::sm90 {

inline int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// The operand as [mn, k] or, if MN-major, as [k, mn]: rows contiguous, as the copy engine wants it.
inline TensorBox operand_box(const MatrixBatch& operand, int64_t batch, int64_t mn, int64_t k, int64_t mn_stride,
                             int64_t k_stride, uint32_t box_rows) {
  if (k_stride == 1) return {operand.data, batch, mn, k, operand.batch_stride, mn_stride, box_rows};
  return {operand.data, batch, k, mn, operand.batch_stride, k_stride, kTileK};
}

template <typename Element, Major kMajorA, Major kMajorB, bool kSymmetric, class Shape>
cudaError_t launch_table(const GemmItem* const* items, int count, const GemmArgs& args, cudaStream_t stream) {
  constexpr auto kType = std::is_same_v<Element, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                         : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  GemmTable table;
  table.count = count;
  table.alpha = args.alpha;
  table.beta = args.beta;
  table.delta = args.delta;
  table.has_c = items[0]->c.data != nullptr && args.beta != 0.0f;
  table.tasks = 0;
  for (int i = 0; i < count; ++i) {
    const GemmItem& item = *items[i];
    GemmEntry& entry = table.entries[i];
    entry.alpha_device = item.alpha;
    entry.m = static_cast<int>(item.m);
    entry.n = static_cast<int>(item.n);
    entry.k = static_cast<int>(item.k);
    entry.tasks_per_matrix = Walk<Shape, kSymmetric>::Order::tasks(entry.m, entry.n);
    entry.first_task = table.tasks;
    table.tasks += entry.tasks_per_matrix * static_cast<int>(item.batch);
    const TensorBox boxes[4] = {
        operand_box(item.a, item.batch, item.m, item.k, item.a.row_stride, item.a.col_stride, Shape::kBoxRowsA),
        operand_box(item.b, item.batch, item.n, item.k, item.b.col_stride, item.b.row_stride,
                    Shape::kBoxRowsB),
        {item.out.data, item.batch, item.m, item.n, item.out.batch_stride, item.out.row_stride, kBox},
        {item.c.data, item.batch, item.m, item.n, item.c.batch_stride, item.c.row_stride, Shape::kTileM}};
    CUtensorMap* const maps[4] = {&entry.a, &entry.b, &entry.out, &entry.c};
    for (int j = 0; j < (table.has_c ? 4 : 3); ++j) {
      if (const cudaError_t error = encode_tensor_map(maps[j], kType, boxes[j])) return error;
    }
  }

  const auto kernel = gemm_sm90_kernel<Element, kMajorA, kMajorB, kSymmetric, Shape>;
  static const cudaError_t prepared =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  if (prepared != cudaSuccess) return prepared;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {Shape::kCluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = std::min(table.tasks, multiprocessors() / Shape::kCluster) * Shape::kCluster;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = Shape::kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, table);
}

using Wide = Tile<128, 256, 4, 2, 2, false>;
using Pair = Tile<128, 128, 6, 2, 2, true>;
using Oblong = Tile<128, 192, 4, 4, 1, true>;
using Square = Tile<128, 128, 5, 4, 1, true>;
using Small = Tile<64, 64, 8, 4, 1, true>;
using Narrow = Tile<64, 128, 6, 4, 1, true>;

template <typename Element, Major kMajorA, Major kMajorB, bool kSymmetric>
cudaError_t launch_tile(const GemmItem* const* items, int count, const GemmArgs& args, cudaStream_t stream) {
  switch (args.tile) {
    case 0: return launch_table<Element, kMajorA, kMajorB, kSymmetric, Wide>(items, count, args, stream);
    case 1: return launch_table<Element, kMajorA, kMajorB, kSymmetric, Pair>(items, count, args, stream);
    case 2: return launch_table<Element, kMajorA, kMajorB, kSymmetric, Oblong>(items, count, args, stream);
    case 3: return launch_table<Element, kMajorA, kMajorB, kSymmetric, Square>(items, count, args, stream);
    case 4: return launch_table<Element, kMajorA, kMajorB, kSymmetric, Small>(items, count, args, stream);
    case 5: return launch_table<Element, kMajorA, kMajorB, kSymmetric, Narrow>(items, count, args, stream);
  }
  return cudaErrorInvalidValue;
}

template <typename Element, bool kSymmetric>
cudaError_t launch_majors(const GemmItem* const* items, int count, const GemmArgs& args, cudaStream_t stream) {
  const bool a_mn = items[0]->a.col_stride != 1, b_mn = items[0]->b.row_stride != 1;
  constexpr Major K = Major::kK, MN = Major::kMN;
  if (!a_mn && !b_mn) return launch_tile<Element, K, K, kSymmetric>(items, count, args, stream);
  if (!a_mn && b_mn) return launch_tile<Element, K, MN, kSymmetric>(items, count, args, stream);
  if (a_mn && b_mn) return launch_tile<Element, MN, MN, kSymmetric>(items, count, args, stream);
  return launch_tile<Element, MN, K, kSymmetric>(items, count, args, stream);
}

}  // namespace muon_kernels::sm90
