// What a block of a persistent product kernel does, whatever its tasks are: one thread loads, two warpgroups multiply and
// store, cooperatively or in turns (tile.cuh).
//
// Tasks (of one cluster, in order; every thread that asks has its own copy):
//   bool next()                         on to the next task; false after the last
//   TileAt tile(rank)                   where block `rank` of the cluster works
//   Product product()                   on what
//   void with_kind(f)                   calls f(kind) with a value of type Kind<...>
//   void wait_for_operands(tile)        before the first load
//   void stored(tile, epilogue)         after the last store was issued, in every thread of the warpgroup
#pragma once

#include "../dependent_launch.cuh"
#include "epilogue.cuh"

namespace muon_kernels::sm90 {

// How a product is computed: its operands' memory orders, and whether only one triangle is and the other mirrored.
template <Major kMajorA_, Major kMajorB_, bool kSymmetric_>
struct Kind {
  static constexpr Major kMajorA = kMajorA_, kMajorB = kMajorB_;
  static constexpr bool kSymmetric = kSymmetric_;
};

template <typename Element, class Kind, int kN, class Shape>
__device__ __forceinline__ void compute_tile(const Product& product, const TileAt& tile, Ring<Shape>& ring,
                                             Epilogue<Element, Shape>& epilogue, int first_row, uint32_t consumer) {
  float acc[Shape::kMmaRows][kN / 2] = {};
  multiply_tile<Element, Shape, Kind::kMajorA, Kind::kMajorB, kN>(acc, ring, product.k, first_row, consumer,
                                                                  threadIdx.x % 32, product.c != nullptr);
  epilogue.template run<Kind::kSymmetric, kN>(acc, product, tile, first_row, ring);
}

// `make_tasks(rank)` is called by every thread once the kernel may touch memory.
template <typename Element, class Shape, class MakeTasks>
__device__ __forceinline__ void run_persistent(MakeTasks make_tasks) {
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

  grid_release_dependents();
  grid_wait_for_dependencies();  // nothing above touches memory that another kernel writes

  auto tasks = make_tasks(blockIdx.x / Shape::kCluster, gridDim.x / Shape::kCluster);
  if (warpgroup == 0) {
    registers_release<40>();
    if (threadIdx.x == 0) {
      while (tasks.next()) {
        const TileAt tile = tasks.tile(rank);
        tasks.wait_for_operands(tile);
        tasks.with_kind([&](auto kind) {
          load_tile<Shape, decltype(kind)::kMajorA, decltype(kind)::kMajorB>(tasks.product(), tile, ring, rank);
        });
      }
    }
    __syncwarp();
  } else {
    registers_acquire<232>();
    const uint32_t consumer = warpgroup - 1;
    const int first_row = Shape::kAlternating ? 0 : static_cast<int>(consumer) * Shape::kRowsPerConsumer;
    Epilogue<Element, Shape> epilogue(
        base + Shape::kStagingOffset + consumer * Shape::kStagingBoxes * Shape::kStagingBytes, 1 + consumer,
        threadIdx.x % 128);
    Turns<Shape>::begin(consumer);
    for (uint32_t turn = 0; tasks.next(); ++turn) {
      if (Shape::kAlternating && turn % kConsumers != consumer) {
        const Product product = tasks.product();
        ring.at.advance(stages_of<Shape>(product.k, product.c != nullptr));
        continue;
      }
      const TileAt tile = tasks.tile(rank);
      Turns<Shape>::wait(consumer);
      tasks.with_kind([&](auto kind) {
        using K = decltype(kind);
        if constexpr (K::kSymmetric && Shape::kHalves) {
          if (tile.half) {
            compute_tile<Element, K, Shape::kTileN / 2>(tasks.product(), tile, ring, epilogue, first_row, consumer);
            return;
          }
        }
        compute_tile<Element, K, Shape::kTileN>(tasks.product(), tile, ring, epilogue, first_row, consumer);
      });
      tasks.stored(tile, epilogue);
    }
    epilogue.finish();
  }
  if constexpr (Shape::kCluster > 1) cluster_sync();  // a block must outlive its neighbours' arrivals and copies
}

}  // namespace muon_kernels::sm90
