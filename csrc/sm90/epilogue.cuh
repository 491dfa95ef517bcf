// The epilogue of a consumer warpgroup: acc <- alpha acc + beta C + delta I in fp32, rounded once, and stored in 64 x
// 64 boxes through shared memory by the copy engine, which clips at the edges of the matrix.
//
// A symmetric product stores every box below the diagonal twice, the second time transposed. A box on the diagonal is
// stored once: its transpose is written to shared memory first and its lower half over it, so that it is bitwise
// symmetric.
#pragma once

#include <climits>

#include "fragments.cuh"
#include "gain.cuh"
#include "mainloop.cuh"

namespace muon_kernels::sm90 {

template <typename Element, class Shape, bool kSymmetric>
class Epilogue {
  static constexpr int kBoxesN = Shape::kTileN / kBox;
  static constexpr int kBoxes = Shape::kMmaRows * kBoxesN;

 public:
  static constexpr bool kThroughTensorMap = true;
  static constexpr int kLoaderRegisters = 40, kConsumerRegisters = 232;
  // Cooperative warpgroups have nobody who multiplies while they store: they keep a tile, rounded, and store it box by
  // box during the products of the next, a box in two stages, as a store waits until the one before the last has been
  // read. With halves of tiles there are no registers left for that.
  static constexpr int kStagesPerBox = kSymmetric && Shape::kHalves ? 1 : 2;
  static constexpr int kKeptStages = Shape::kAlternating ? 0 : kBoxes * kStagesPerBox;

  __device__ __forceinline__ Epilogue(const GemmTable& table, uint32_t staging, uint32_t barrier_id, uint32_t thread)
      : table_(table),
        staging_(staging),
        barrier_id_(barrier_id),
        leader_(thread == 0),
        map_{thread / 32, thread % 32} {}

  // The first kN columns of the tile; `first_row` is the warpgroup's first row in it.
  template <int kRows, int kN>
  __device__ __forceinline__ void run(float (&acc)[kRows][kN / 2], const GemmEntry& problem,
                                      const TileAt& tile, int first_row, Ring<Shape>& ring) {
    combine<kRows, kN>(acc, problem, tile, first_row, ring);
    tile_ = tile;
    tile_.row += first_row;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int box = 0; box < kN / kBox; ++box) {
#pragma unroll
        for (int p = 0; p < 4; ++p) pack_fragments<Element>(kept_[r * kBoxesN + box][p], &acc[r][32 * box + 8 * p]);
        if (kKeptStages == 0) store<true, true>(r * kBoxesN + box);
      }
    }
    end_ = tile.col + kN;
  }

  // Of what is kept of the tile before, that which is stored in this stage.
  __device__ __forceinline__ void store_kept(int stage) {
    const int box = stage / kStagesPerBox;
    if (tile_.col + box % kBoxesN * kBox >= end_) return;
    if (kStagesPerBox == 1) {
      store<true, true>(box);
    } else if (stage % 2 == 0) {
      store<true, false>(box);
    } else {
      store<false, true>(box);
    }
  }

  __device__ __forceinline__ void store_all_kept() {
#pragma unroll
    for (int stage = 0; stage < kKeptStages; ++stage) store_kept(stage);
  }

  // Before the block ends: shared memory must outlive the stores that read it.
  __device__ __forceinline__ void finish() {
    store_all_kept();
    if (leader_) tensor_store_wait_read<0>();
  }

 private:
  template <int kRows, int kN>
  __device__ __forceinline__ void combine(float (&acc)[kRows][kN / 2], const GemmEntry& problem,
                                          const TileAt& tile, int first_row, Ring<Shape>& ring) const {
    float alpha = problem.alpha, beta = problem.beta, delta = problem.delta;
    if (kSymmetric && problem.norms != nullptr) {
      const float gain = gain_of<Element>(problem, tile.batch, map_.lane);
      alpha *= power(gain, problem.powers[0]);
      beta *= power(gain, problem.powers[1]);
      delta *= power(gain, problem.powers[2]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) acc[r][i] *= alpha;
    }
    if (problem.has_c) {
#pragma unroll
      for (int first = 0; first < Shape::kBoxesC; first += Shape::kBoxesPerStage) {
        barrier_wait(ring.full(), ring.at.parity);
#pragma unroll
        for (int box = first; box < min(first + Shape::kBoxesPerStage, kN / kBox); ++box) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const uint32_t base = ring.data() + (box - first) * Shape::kBytesA + (first_row + 64 * r) * 128;
#pragma unroll
            for (int p = 0; p < 4; ++p) {
              uint32_t fragment[4];
              load_fragments(fragment, base + map_.direct(p));
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                float* pair = &acc[r][32 * box + 8 * p + 4 * (i >> 1) + 2 * (i & 1)];
                const float2 c = unpack<Element>(fragment[i]);
                pair[0] = fmaf(beta, c.x, pair[0]);
                pair[1] = fmaf(beta, c.y, pair[1]);
              }
            }
          }
        }
        fence_shared_for_async();  // the copy engine overwrites what was just read
        __syncwarp();
        ring.release(map_.lane);
        ring.at.advance();
      }
    }
    if (delta != 0.0f && tile.row < tile.col + Shape::kTileN && tile.col < tile.row + Shape::kTileM) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int here = 16 * map_.warp + map_.lane / 4 - 2 * (map_.lane % 4);  // row - column of element 0
        const int ahead = tile.row - tile.col + first_row + 64 * r + here;
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) {
          if (ahead + 8 * (i / 2 % 2) == 8 * (i / 4) + i % 2) acc[r][i] += delta;
        }
      }
    }
  }

  // Claims the next staging box: its previous store has been read and the warpgroup agrees on it.
  __device__ __forceinline__ uint32_t claim() {
    if (leader_) tensor_store_wait_read<Shape::kStagingBoxes - 1>();
    named_barrier(barrier_id_, 128);
    const uint32_t box = staging_ + next_ * Shape::kStagingBytes;
    next_ = (next_ + 1) % Shape::kStagingBoxes;
    return box;
  }

  __device__ __forceinline__ void publish(uint32_t box, const GemmEntry& problem, int row, int col) const {
    fence_shared_for_async();
    named_barrier(barrier_id_, 128);
    if (leader_) tensor_store(&problem.out, box, col, row, tile_.batch);
  }

  // A box of the warpgroup's rows, and its mirror image if the product is symmetric.
  template <bool kDirect, bool kMirrored>
  __device__ __forceinline__ void store(int box) {
    const GemmEntry& problem = table_.entries[tile_.entry];
    const int row = tile_.row + box / kBoxesN * kBox, col = tile_.col + box % kBoxesN * kBox;
    if (row >= problem.m || col >= problem.n || (kSymmetric && row < col)) return;
    if (kSymmetric && row == col) {
      if (kDirect) store_on_diagonal(kept_[box], problem, row);
      return;
    }
    if (kDirect) store_box<false>(kept_[box], problem, row, col);
    if (kSymmetric && kMirrored) store_box<true>(kept_[box], problem, col, row);
  }

  template <bool kTransposed>
  __device__ __forceinline__ void store_box(const uint32_t (&part)[4][4], const GemmEntry& problem, int row, int col) {
    const uint32_t box = claim();
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      if constexpr (kTransposed) {
        store_fragments_transposed(box + map_.transposed(p), part[p]);
      } else {
        store_fragments(box + map_.direct(p), part[p]);
      }
    }
    publish(box, problem, row, col);
  }

  __device__ __forceinline__ void store_on_diagonal(const uint32_t (&part)[4][4], const GemmEntry& problem, int row) {
    const uint32_t box = claim();
#pragma unroll
    for (int p = 0; p < 4; ++p) store_fragments_transposed(box + map_.transposed(p), part[p]);
    named_barrier(barrier_id_, 128);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t r = 16 * map_.warp + 8 * (i & 1) + map_.lane / 4;
        const uint32_t c = 16 * p + 8 * (i >> 1) + 2 * (map_.lane % 4);
        const uint32_t address = box + r * 128 + ((c / 8 ^ r % 8) << 4) + c % 8 * 2;
        if (r > c) {
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(part[p][i]) : "memory");
        } else if (r == c) {
          asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(static_cast<uint16_t>(part[p][i])) : "memory");
        }
      }
    }
    publish(box, problem, row, row);
  }

  const GemmTable& table_;
  uint32_t staging_, barrier_id_;
  bool leader_;
  FragmentMap map_;
  uint32_t next_ = 0;
  uint32_t kept_[kBoxes][4][4];  // fragments of the tile's boxes of 64 x 64
  TileAt tile_;                  // the tile they are of, from the warpgroup's first row on
  int end_ = INT_MIN;            // of its columns
};

}  // namespace muon_kernels::sm90
