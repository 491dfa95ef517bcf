// gemm_sm90_kernel: out = alpha A B + beta C + delta I for a list of problems (problem.h), in one persistent grid.
// gemm_apply_sm90_kernel: p <- p (1 - lr weight_decay) - lr scale A B, or p <- A B, for parameters of any dtype.
//
// Warpgroup 0 loads: one thread drives the copy engine; another, in the first block of a cluster, draws the tasks of all
// its blocks from a counter (tasks.cuh). Warpgroups 1 and 2 multiply and store, cooperatively or in turns, see tile.cuh,
// which also maps shared memory. A symmetric launch computes the lower triangle of tiles and mirrors it: A B and C must be
// symmetric, and the result is bitwise so.
//
// Limits: 16-bit elements; base addresses, all strides but the unit one, and sizes along the unit stride multiples of
// 16 bytes (the copy engine writes whole ones, also past the edge of a matrix); k >= 1; m, n, k < 2^31.
#pragma once

#include "../dependent_launch.cuh"
#include "apply_epilogue.cuh"
#include "epilogue.cuh"

namespace muon_kernels::sm90 {

template <typename Element, Major kMajorA, Major kMajorB, int kRows, int kN, class Shape, class Output>
__device__ __forceinline__ void compute_tile(const GemmTable& table, const TileAt& tile, Ring<Shape>& ring,
                                             Output& epilogue, int first_row, uint32_t consumer) {
  float acc[kRows][kN / 2] = {};
  const GemmEntry& problem = table.entries[tile.entry];
  multiply_tile<Element, Shape, kMajorA, kMajorB, kRows, kN>(acc, ring, epilogue, problem.k, first_row, consumer,
                                                             threadIdx.x % 32, problem.has_c);
  epilogue.template run<kRows, kN>(acc, problem, tile, first_row, ring);
}

// What a block does. Output: the epilogue of a warpgroup, made of its staging boxes and of `parameters`.
template <typename Element, Major kMajorA, Major kMajorB, bool kSymmetric, class Shape, class Output,
          typename... Parameters>
__device__ __forceinline__ void compute_tiles(const GemmTable& table, int* counter, const Parameters&... parameters) {
  // A block is launched with 168 registers a thread; for more than these a warpgroup would wait for ever.
  static_assert(Output::kLoaderRegisters + kConsumers * Output::kConsumerRegisters <= (1 + kConsumers) * 168);
  extern __shared__ uint8_t shared[];
  const uint32_t base = (shared_address(shared) + 1023) & ~1023u;
  Ring<Shape> ring{base, base + Shape::kBarrierOffset, {}};
  const uint32_t rank = Shape::kCluster == 1 ? 0 : cluster_rank();
  const uint32_t warpgroup = threadIdx.x / 128;
  const bool loads = threadIdx.x == 0, deals = threadIdx.x == 32 && rank == 0;
  TaskQueue<Shape::kCluster> tasks(base + Shape::kTasksOffset);
  TaskDealer<Shape> dealer(table, counter);
  if (deals) dealer.draw();  // the answer takes as long as all that follows
  if (loads) initialise_barriers<Shape>(base);
  if (threadIdx.x >= 128 && static_cast<int>(threadIdx.x) - 128 < table.count) {
    const GemmEntry& problem = table.entries[threadIdx.x - 128];
    prefetch_tensor_map(&problem.a);
    prefetch_tensor_map(&problem.b);
    if (Output::kThroughTensorMap) prefetch_tensor_map(&problem.out);
  }
  if constexpr (Shape::kCluster == 1) {
    __syncthreads();
  } else {
    cluster_sync();
  }
  if (deals) dealer.send(tasks);

  grid_release_dependents();
  grid_wait_for_dependencies();  // nothing above touches memory that another kernel writes: the counter is our own

  if (warpgroup == 0) {
    registers_release<Output::kLoaderRegisters>();
    if (loads) {
      for (int task; (task = tasks.next()) >= 0;) {
        const TileAt tile = Walk<Shape, kSymmetric>::locate(table, task, rank);
        load_tile<Shape, kMajorA, kMajorB>(table, tile, ring, tasks, rank);
      }
    } else if (deals) {
      dealer.deal(tasks);
    }
    __syncwarp();
  } else {
    registers_acquire<Output::kConsumerRegisters>();
    const uint32_t consumer = warpgroup - 1;
    const uint32_t thread = threadIdx.x % 128;
    const int first_row = Shape::kAlternating ? 0 : static_cast<int>(consumer) * Shape::kRowsPerConsumer;
    Output epilogue(table, base + Shape::kStagingOffset + consumer * Shape::kStagingBoxes * Shape::kStagingBytes, 1 + consumer,
                    thread, parameters...);
    Turns<Shape>::begin(consumer);
    int task;
    for (uint32_t turn = 0; (task = tasks.next()) >= 0; ++turn) {
      if (Shape::kAlternating && turn % kConsumers != consumer) {
        ring.at.advance(stages_of<Shape>(table, entry_of<Shape, kSymmetric>(table, task)));
        continue;
      }
      const TileAt tile = Walk<Shape, kSymmetric>::locate(table, task, rank);
      Turns<Shape>::wait(consumer);
      constexpr bool kParts = kSymmetric && (Shape::kHalves || Shape::kQuarters);
      if constexpr (kParts) {
        if (tile.part) {
          compute_tile<Element, kMajorA, kMajorB, Shape::kQuarters ? 1 : Shape::kMmaRows, Shape::kTileN / 2>(
              table, tile, ring, epilogue, first_row, consumer);
          continue;
        }
      }
      compute_tile<Element, kMajorA, kMajorB, Shape::kMmaRows, Shape::kTileN>(table, tile, ring, epilogue, first_row,
                                                                              consumer);
    }
    epilogue.finish();
  }
  if constexpr (Shape::kCluster > 1) cluster_sync();  // a block must outlive its neighbours' arrivals and copies
}

template <typename Element, Major kMajorA, Major kMajorB, bool kSymmetric, class Shape>
__global__ void __launch_bounds__(kThreads, 1) gemm_sm90_kernel(const __grid_constant__ GemmTable table, int* counter) {
  compute_tiles<Element, kMajorA, kMajorB, kSymmetric, Shape, Epilogue<Element, Shape, kSymmetric>>(table, counter);
}

template <typename Element, typename Param, Major kMajorA, Major kMajorB, class Shape>
__global__ void __launch_bounds__(kThreads, 1)
    gemm_apply_sm90_kernel(const __grid_constant__ GemmTable table, const __grid_constant__ ApplyTargets targets) {
  compute_tiles<Element, kMajorA, kMajorB, false, Shape, ApplyEpilogue<Element, Param, Shape>>(table, nullptr, targets);
}

}  // namespace muon_kernels::sm90
