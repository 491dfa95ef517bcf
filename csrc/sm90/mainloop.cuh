// The mainloop: one thread fills a ring of shared-memory stages with the copy engine, warpgroups multiply out of it.
//
// The ring carries, tile after tile, the k steps of a tile and then, if the product adds C, that tile's C. A full
// barrier completes when a stage's bytes have landed, an empty barrier when every consumer warp that reads the stage,
// in every block of the cluster, is done with it. In a cluster each block loads its own operand and C, and its share of
// the shared operand to all.
#pragma once

#include "problem.h"
#include "ptx.cuh"
#include "tasks.cuh"
#include "walk.cuh"

namespace muon_kernels::sm90 {

// Position in the ring: a stage and the parity of its current use.
template <int kStages>
struct RingPosition {
  uint32_t stage = 0, parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  __device__ __forceinline__ void advance(uint32_t steps) {
    const uint32_t turns = (stage + steps) / kStages;
    stage = (stage + steps) % kStages;
    parity ^= turns & 1;
  }
};

template <class Shape>
struct Ring {
  uint32_t stages;    // shared addresses
  uint32_t barriers;
  RingPosition<Shape::kStages> at;

  __device__ __forceinline__ uint32_t full() const { return barriers + 16 * at.stage; }
  __device__ __forceinline__ uint32_t empty() const { return full() + 8; }
  __device__ __forceinline__ uint32_t data() const { return stages + at.stage * Shape::kStageBytes; }

  // The stage at `at` may be overwritten, as far as this warp is concerned.
  __device__ __forceinline__ void release(uint32_t lane) const { release(at.stage, lane); }
  __device__ __forceinline__ void release_previous(uint32_t lane) const {
    release(at.stage == 0 ? Shape::kStages - 1 : at.stage - 1, lane);
  }

 private:
  __device__ __forceinline__ void release(uint32_t stage, uint32_t lane) const {
    const uint32_t empty = barriers + 16 * stage + 8;
    if constexpr (Shape::kCluster == 1) {
      if (lane == 0) barrier_arrive(empty);
    } else {
      if (lane < Shape::kCluster) barrier_arrive_remote(empty, lane);
    }
  }
};

// `base`: of shared memory.
template <class Shape>
__device__ __forceinline__ void initialise_barriers(uint32_t base) {
  constexpr int kWarps = 4 * (Shape::kAlternating ? 1 : kConsumers);
  for (int stage = 0; stage < Shape::kStages; ++stage) {
    barrier_init(base + Shape::kBarrierOffset + 16 * stage, 1);
    barrier_init(base + Shape::kBarrierOffset + 16 * stage + 8, kWarps * Shape::kCluster);
  }
  TaskQueue<Shape::kCluster>::initialise(base + Shape::kTasksOffset);
  barrier_init_fence();
}

// Loads kExtent m or n by kTileK; each of kShares blocks loads its part to all of them. A K-major box holds kBoxRows of
// them.
template <Major kMajor, int kExtent, int kBoxRows, int kShares>
__device__ __forceinline__ void load_operand(uint32_t target, const CUtensorMap& map, uint32_t barrier, int k, int mn,
                                             int batch, uint32_t rank) {
  constexpr int kPart = kExtent / kShares;
  constexpr int kBoxExtent = kMajor == Major::kK ? kBoxRows : 64;
  const int first = kShares == 1 ? 0 : static_cast<int>(rank) * kPart;
#pragma unroll
  for (int i = 0; i < kPart; i += kBoxExtent) {
    const int offset = first + i;
    const uint32_t box = target + offset / 64 * kBoxBytes;
    const int x = kMajor == Major::kK ? k : mn + offset;
    const int y = kMajor == Major::kK ? mn + offset : k;
    if constexpr (kShares == 1) {
      tensor_load(box, &map, barrier, x, y, batch);
    } else {
      tensor_load_multicast(box, &map, barrier, x, y, batch, (1 << kShares) - 1);
    }
  }
}

// One thread: everything that one tile needs, in the order of the ring. The one in the dealer's block asks for the next
// task once no more k steps are left than the ring holds: in time for loads without a pause, and late, so that the last
// tasks go to who is ahead.
template <class Shape, Major kMajorA, Major kMajorB>
__device__ __forceinline__ void load_tile(const GemmTable& table, const TileAt& tile, Ring<Shape>& ring,
                                          const TaskQueue<Shape::kCluster>& tasks, uint32_t rank) {
  constexpr int kShares = Shape::kCluster;
  const GemmEntry& problem = table.entries[tile.entry];
  if (problem.has_c) {  // comes last, and for all blocks at about the same time: ask for it early
    for (int i = 0; i < Shape::kBoxesC; ++i) tensor_prefetch(&problem.c, tile.col + i * kBox, tile.row, tile.batch);
  }
  const int asks_at = max((problem.k - 1) / kTileK + 1 - Shape::kStages, 0) * kTileK;
  for (int k = 0; k < problem.k; k += kTileK, ring.at.advance()) {
    if (k == asks_at && rank == 0) tasks.ask();
    barrier_wait(ring.empty(), ring.at.parity ^ 1);
    const uint32_t left_out = !tile.part ? 0 : Shape::kQuarters ? Shape::kStageBytes / 2 : Shape::kBytesB / 2;
    barrier_expect_bytes(ring.full(), Shape::kStageBytes - left_out);
    const uint32_t data_b = ring.data() + Shape::kBytesA;
    if (Shape::kHalves && tile.part) {
      load_operand<kMajorA, Shape::kTileM, Shape::kBoxRowsA, 1>(ring.data(), problem.a, ring.full(), k, tile.row,
                                                                tile.batch, rank);
      load_operand<kMajorB, Shape::kTileN / 2, Shape::kBoxRowsB, 1>(data_b, problem.b, ring.full(), k, tile.col,
                                                                    tile.batch, rank);
    } else if (Shape::kQuarters && tile.part) {
      load_operand<kMajorA, Shape::kTileM / 2, Shape::kBoxRowsA, 1>(ring.data(), problem.a, ring.full(), k, tile.row,
                                                                    tile.batch, rank);
      load_operand<kMajorB, Shape::kTileN / 2, Shape::kBoxRowsB, 1>(data_b, problem.b, ring.full(), k, tile.col,
                                                                    tile.batch, rank);
    } else if (Shape::kSquare && tile.shares_a) {
      load_operand<kMajorA, Shape::kTileM, Shape::kBoxRowsA, kShares>(ring.data(), problem.a, ring.full(), k, tile.row,
                                                                      tile.batch, rank);
      load_operand<kMajorB, Shape::kTileN, Shape::kBoxRowsB, 1>(data_b, problem.b, ring.full(), k, tile.col, tile.batch,
                                                                rank);
    } else {
      load_operand<kMajorA, Shape::kTileM, Shape::kBoxRowsA, 1>(ring.data(), problem.a, ring.full(), k, tile.row,
                                                                tile.batch, rank);
      load_operand<kMajorB, Shape::kTileN, Shape::kBoxRowsB, kShares>(data_b, problem.b, ring.full(), k, tile.col,
                                                                      tile.batch, rank);
    }
  }
  if (!problem.has_c) return;
  for (int first = 0; first < Shape::kBoxesC; first += Shape::kBoxesPerStage, ring.at.advance()) {
    const int boxes = min(Shape::kBoxesPerStage, Shape::kBoxesC - first);
    barrier_wait(ring.empty(), ring.at.parity ^ 1);
    barrier_expect_bytes(ring.full(), boxes * Shape::kBytesA);
    for (int i = 0; i < boxes; ++i) {
      tensor_load(ring.data() + i * Shape::kBytesA, &problem.c, ring.full(), tile.col + (first + i) * kBox, tile.row,
                  tile.batch);
    }
  }
}

// Number of stages that load_tile fills for a tile of this entry.
template <class Shape>
__device__ __forceinline__ uint32_t stages_of(const GemmTable& table, int entry) {
  return (table.entries[entry].k + kTileK - 1) / kTileK + (table.entries[entry].has_c ? Shape::kStagesC : 0);
}

// Alternating warpgroups take turns at the ring. A warpgroup passes the turn on once it has seen every stage of its
// tile full: a barrier shows only the parity of its phase, so nobody may wait for a phase whose predecessor is still
// open.
template <class Shape>
struct Turns {
  static constexpr uint32_t kFirstBarrier = 1 + kConsumers;

  static __device__ __forceinline__ void begin(uint32_t consumer) {
    if (Shape::kAlternating && consumer == 1) named_barrier_arrive(kFirstBarrier, 256);
  }
  static __device__ __forceinline__ void wait(uint32_t consumer) {
    if (Shape::kAlternating) named_barrier(kFirstBarrier + consumer, 256);
  }
  static __device__ __forceinline__ void pass(uint32_t consumer, Ring<Shape> ring, bool has_c) {
    if constexpr (Shape::kAlternating) {
      for (int i = 0; has_c && i < Shape::kStagesC; ++i, ring.at.advance()) barrier_wait(ring.full(), ring.at.parity);
      named_barrier_arrive(kFirstBarrier + (consumer ^ 1), 256);
    }
  }
};

// A consumer warpgroup: issues the products of the stage at `ring.at`, once it is full. Up to one stage before it may be
// in flight.
template <typename Element, class Shape, Major kMajorA, Major kMajorB, int kRows, int kN>
__device__ __forceinline__ void multiply_stage(float (&acc)[kRows][kN / 2], const Ring<Shape>& ring, int first_row) {
  const uint64_t first_a = operand_descriptor<kMajorA>(ring.stages + first_row / 64 * kBoxBytes);
  const uint64_t first_b = operand_descriptor<kMajorB>(ring.stages + Shape::kBytesA);
  const uint64_t offset = ring.at.stage * (Shape::kStageBytes >> 4);
  barrier_wait(ring.full(), ring.at.parity);
#pragma unroll
  for (int r = 0; r < kRows; ++r) pin_registers<kN / 2>(acc[r]);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kTileK / 16; ++step) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      wgmma<Element, kMajorA, kMajorB, kN>(acc[r], first_a + offset + step * kStepK16<kMajorA> + r * (kBoxBytes >> 4),
                                           first_b + offset + step * kStepK16<kMajorB>);
    }
  }
  wgmma_commit();
#pragma unroll
  for (int r = 0; r < kRows; ++r) pin_registers<kN / 2>(acc[r]);
}

// The stage before the one at `ring.at`, which has just been issued, is done.
template <class Shape>
__device__ __forceinline__ void retire_previous(const Ring<Shape>& ring, uint32_t lane) {
  wgmma_wait<1>();
  ring.release_previous(lane);
}

// The stages from `k` on, until all products are done.
template <typename Element, class Shape, Major kMajorA, Major kMajorB, int kRows, int kN>
__device__ __forceinline__ void multiply_stages(float (&acc)[kRows][kN / 2], Ring<Shape>& ring, int k, int k_extent,
                                                int first_row, uint32_t consumer, uint32_t lane, bool has_c) {
  for (; k < k_extent; k += kTileK, ring.at.advance()) {
    multiply_stage<Element, Shape, kMajorA, kMajorB, kRows, kN>(acc, ring, first_row);
    if (k > 0) retire_previous(ring, lane);
  }
  Turns<Shape>::pass(consumer, ring, has_c);
  wgmma_wait<0>();
#pragma unroll
  for (int r = 0; r < kRows; ++r) pin_registers<kN / 2>(acc[r]);
  ring.release_previous(lane);
}

// A consumer warpgroup: its rows of A B, kN columns. `first_row` is the warpgroup's first row in the tile. While the first
// stages are multiplied, the epilogue stores what it has kept of the tile before.
template <typename Element, class Shape, Major kMajorA, Major kMajorB, int kRows, int kN, class Output>
__device__ __forceinline__ void multiply_tile(float (&acc)[kRows][kN / 2], Ring<Shape>& ring, Output& epilogue,
                                              int k_extent, int first_row, uint32_t consumer, uint32_t lane,
                                              bool has_c) {
  if constexpr (Output::kKeptStages > 0) {
    // Paths that met before all products are done would make ptxas serialise them.
    if (k_extent > (Output::kKeptStages - 1) * kTileK) {
#pragma unroll
      for (int stage = 0; stage < Output::kKeptStages; ++stage, ring.at.advance()) {
        multiply_stage<Element, Shape, kMajorA, kMajorB, kRows, kN>(acc, ring, first_row);
        epilogue.store_kept(stage);
        if (stage > 0) retire_previous(ring, lane);
      }
      multiply_stages<Element, Shape, kMajorA, kMajorB, kRows, kN>(acc, ring, Output::kKeptStages * kTileK, k_extent,
                                                                   first_row, consumer, lane, has_c);
      return;
    }
    epilogue.store_all_kept();
  }
  multiply_stages<Element, Shape, kMajorA, kMajorB, kRows, kN>(acc, ring, 0, k_extent, first_row, consumer, lane, has_c);
}

}  // namespace muon_kernels::sm90
