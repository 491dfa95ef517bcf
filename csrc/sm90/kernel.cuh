// gemm_sm90_kernel: out = alpha A B + beta C + delta I for a list of problems (problem.h), in one persistent grid.
//
// Warpgroup 0 loads: one thread drives the copy engine. Warpgroups 1 and 2 multiply and store; cooperative or alternating,
// shared memory: see tile.cuh. Limits: 16-bit elements; base addresses and all strides but the unit one multiples of
// 16 bytes (the copy engine's rule); k >= 1; m, n, k < 2^31. A symmetric launch computes the lower triangle of tiles
// and mirrors it: it needs A B and C symmetric and delivers a bitwise symmetric result.
#pragma once

#include "epilogue.cuh"

namespace muon_kernels::sm90 {

template <typename Element, Major kMajorA, Major kMajorB, bool kSymmetric, class Shape>
__global__ void __launch_bounds__(kThreads, 1) gemm_sm90_kernel(const __grid_constant__ GemmTable table) {
  extern __shared__ uint8_t shared[];
  const uint32_t base = (shared_address(shared) + 1023) & ~1023u;
  Ring<Shape> ring{base, base + Shape::kBarrierOffset, {}};
  const uint32_t rank = Shape::kCluster == 1 ? 0 : cluster_rank();
  const uint32_t warpgroup = threadIdx.x / 128;
  if (threadIdx.x == 0) initialise_barriers<Shape>(ring.barriers);
  if constexpr (Shape::kCluster == 1) {
    __syncthreads();
  } else {
    cluster_sync();
  }

  const int stride = gridDim.x / Shape::kCluster;
  int task = blockIdx.x / Shape::kCluster;
  if (warpgroup == 0) {
    registers_release<Shape::kTileN == 192 ? 24 : 40>();
    if (threadIdx.x == 0) {
      for (; task < table.tasks; task += stride) {
        load_tile<Shape, kMajorA, kMajorB>(table, Walk<Shape, kSymmetric>::locate(table, task, rank), ring, rank);
      }
    }
    __syncwarp();
  } else {
    registers_acquire<Shape::kTileN == 192 ? 240 : 232>();
    const uint32_t consumer = warpgroup - 1;
    const uint32_t thread = threadIdx.x % 128;
    const int first_row = Shape::kAlternating ? 0 : static_cast<int>(consumer) * Shape::kRowsPerConsumer;
    Epilogue<Element, Shape, kSymmetric> epilogue(
        base + Shape::kStagingOffset + consumer * Shape::kStagingBoxes * Shape::kStagingBytes, 1 + consumer, thread);
    Turns<Shape>::begin(consumer);
    float acc[Shape::kMmaRows][Shape::kTileN / 2];
    for (uint32_t turn = 0; task < table.tasks; task += stride, ++turn) {
      if (Shape::kAlternating && turn % kConsumers != consumer) {
        ring.at.advance(stages_of<Shape>(table, entry_of(table, task)));
        continue;
      }
      const TileAt tile = Walk<Shape, kSymmetric>::locate(table, task, rank);
      Turns<Shape>::wait(consumer);
      multiply_tile<Element, Shape, kMajorA, kMajorB>(acc, ring, table.entries[tile.entry].k, first_row, consumer,
                                                      thread % 32, table.has_c);
      epilogue.run(acc, table, tile, first_row, ring);
    }
    epilogue.finish();
  }
  if constexpr (Shape::kCluster > 1) cluster_sync();  // a block must outlive its neighbours' arrivals and copies
}

}  // namespace muon_kernels::sm90
