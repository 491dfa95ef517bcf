// Definition of prepare_group: from items to the table of kernel parameters, and from run-time choices to the instance.
#pragma once

#include <algorithm>
#include <iterator>

#include "gram_norms.h"
#include "kernel.cuh"
#include "launch.cuh"
#include "shapes.cuh"
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

template <typename Element, class Shape, class Order>
cudaError_t fill_table(GemmTable& table, const GemmItem* items, int count) {
  constexpr auto kType = std::is_same_v<Element, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                         : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  table.count = count;
  table.tasks = table.parts = 0;
  int targets = 0;
  for (int i = 0; i < count; ++i) {
    const GemmItem& item = items[i];
    GemmEntry& entry = table.entries[i];
    entry.alpha = item.alpha;
    entry.beta = item.beta;
    entry.delta = item.delta;
    entry.norms = item.norms.data;
    entry.norms_batch_stride = static_cast<int>(item.norms.batch_stride);
    entry.norms_row_stride = static_cast<int>(item.norms.row_stride);
    entry.norms_parts = static_cast<int>((item.m + kNormRows - 1) / kNormRows);
    std::copy(std::begin(item.powers), std::end(item.powers), entry.powers);
    entry.has_c = item.c.data != nullptr && item.beta != 0.0f;
    entry.m = static_cast<int>(item.m);
    entry.n = static_cast<int>(item.n);
    entry.k = static_cast<int>(item.k);
    entry.tasks = Order::tasks(entry.m, entry.n);
    entry.parts = Order::halves(entry.m);
    entry.first_task = table.tasks;
    entry.first_part = table.parts;
    entry.first_target = targets;
    targets += static_cast<int>(item.batch);
    table.tasks += entry.tasks * static_cast<int>(item.batch);
    table.parts += entry.parts * static_cast<int>(item.batch);
    const MatrixBatch &a = item.a, &b = item.b, &c = item.c, &out = item.out;
    const TensorBox boxes[4] = {
        operand_box(a, item.batch, item.m, item.k, a.row_stride, a.col_stride, Shape::kBoxRowsA),
        operand_box(b, item.batch, item.n, item.k, b.col_stride, b.row_stride, Shape::kBoxRowsB),
        {out.data, item.batch, item.m, item.n, out.batch_stride, out.row_stride, kBox},
        {entry.has_c ? c.data : nullptr, item.batch, item.m, item.n, c.batch_stride, c.row_stride, Shape::kTileM}};
    CUtensorMap* const maps[4] = {&entry.a, &entry.b, &entry.out, &entry.c};
    for (int j = 0; j < 4; ++j) {
      if (boxes[j].data == nullptr) continue;
      if (const cudaError_t error = encode_tensor_map(maps[j], kType, boxes[j])) return error;
    }
  }
  return cudaSuccess;
}

template <typename Element, bool kSymmetric, class Shape, class Kernel>
cudaError_t prepare_kernel(Kernel* kernel, const GemmItem* items, int count, GemmLaunch& launch) {
  using Order = typename Walk<Shape, kSymmetric>::Order;
  GemmTable& table = launch.table;
  if (const cudaError_t error = fill_table<Element, Shape, Order>(table, items, count)) return error;
  const int clusters = multiprocessors() / Shape::kCluster;
  if (kSymmetric && Shape::kQuarters) {
    const int rest = last_round_in_quarters(table.tasks, clusters);
    table.tasks -= rest;
    table.parts = 4 * rest;
  }
  launch.kernel = reinterpret_cast<const void*>(kernel);
  launch.cluster = Shape::kCluster;
  launch.blocks = std::min(table.tasks + table.parts, clusters) * Shape::kCluster;
  launch.shared_bytes = Shape::kSharedBytes;
  return cudaFuncSetAttribute(launch.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
}

template <typename Element, Major kMajorA, Major kMajorB, bool kSymmetric, class Shape>
cudaError_t prepare_instance(const GemmItem* items, int count, GemmLaunch& launch) {
  return prepare_kernel<Element, kSymmetric, Shape>(gemm_sm90_kernel<Element, kMajorA, kMajorB, kSymmetric, Shape>,
                                                    items, count, launch);
}
template <typename Element, Major kMajorA, Major kMajorB, bool kSymmetric>
cudaError_t prepare_majors(const GemmItem* items, int count, int tile, GemmLaunch& launch) {
  if (tile == kTileBySizes) tile = choose_gemm_tile(kSymmetric, items, count, multiprocessors());
  cudaError_t result = cudaErrorInvalidValue;
  for_each_shape<kSymmetric>([&](int index, auto shape) {
    if (index == tile) {
      result = prepare_instance<Element, kMajorA, kMajorB, kSymmetric, decltype(shape)>(items, count, launch);
    }
  });
  return result;
}

template <typename Element, bool kSymmetric>
cudaError_t prepare_group(const GemmItem* items, int count, int tile, GemmLaunch& launch) {
  constexpr Major K = Major::kK, MN = Major::kMN;
  const bool a_mn = items[0].a.col_stride != 1, b_mn = items[0].b.row_stride != 1;
  if (a_mn && b_mn) return prepare_majors<Element, MN, MN, kSymmetric>(items, count, tile, launch);
  if (b_mn) return prepare_majors<Element, K, MN, kSymmetric>(items, count, tile, launch);
  if (!a_mn) return prepare_majors<Element, K, K, kSymmetric>(items, count, tile, launch);
  if constexpr (kSymmetric) return cudaErrorInvalidValue;  // comes transposed
  else return prepare_majors<Element, MN, K, kSymmetric>(items, count, tile, launch);
}

}  // namespace muon_kernels::sm90
