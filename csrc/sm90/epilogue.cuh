// The epilogue of a consumer warpgroup: acc <- alpha acc + beta C + delta I in fp32, rounded once, and stored in 64 x
// 64 boxes through shared memory by the copy engine, which clips at the edges of the matrix.
//
// A symmetric product stores every box below the diagonal twice, the second time transposed. A box on the diagonal is
// stored once: its transpose is written to shared memory first and its lower half over it, so that it is bitwise
// symmetric.
#pragma once

#include "fragments.cuh"
#include "mainloop.cuh"

namespace muon_kernels::sm90 {

template <typename Element, class Shape, bool kSymmetric>
class Epilogue {
 public:
  static constexpr bool kThroughTensorMap = true;

  __device__ __forceinline__ Epilogue(uint32_t staging, uint32_t barrier_id, uint32_t thread)
      : staging_(staging), barrier_id_(barrier_id), leader_(thread == 0), map_{thread / 32, thread % 32} {}

  // Before the products of a tile.
  __device__ __forceinline__ void expect(const GemmEntry&, const TileAt&, int) const {}

  // The first kN columns of the tile; `first_row` is the warpgroup's first row in it.
  template <int kRows, int kN>
  __device__ __forceinline__ void run(float (&acc)[kRows][kN / 2], const GemmEntry& problem,
                                      const TileAt& tile, int first_row, Ring<Shape>& ring) {
    combine<kRows, kN>(acc, problem, tile, first_row, ring);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = tile.row + first_row + 64 * r;
#pragma unroll
      for (int box = 0; box < kN / kBox; ++box) {
        const int col = tile.col + kBox * box;
        if (row >= problem.m || col >= problem.n || (kSymmetric && row < col)) continue;
        const float* part = &acc[r][32 * box];
        if (!kSymmetric) {
          store<false>(part, problem, row, col, tile.batch);
        } else if (row > col) {
          store<false>(part, problem, row, col, tile.batch);
          store<true>(part, problem, col, row, tile.batch);
        } else {
          store_on_diagonal(part, problem, row, tile.batch);
        }
      }
    }
  }

  // Before the block ends: shared memory must outlive the stores that read it.
  __device__ __forceinline__ void finish() const {
    if (leader_) tensor_store_wait_read<0>();
  }

 private:
  template <int kRows, int kN>
  __device__ __forceinline__ void combine(float (&acc)[kRows][kN / 2], const GemmEntry& problem,
                                          const TileAt& tile, int first_row, Ring<Shape>& ring) const {
    const float alpha = problem.alpha;
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
                pair[0] = fmaf(problem.beta, c.x, pair[0]);
                pair[1] = fmaf(problem.beta, c.y, pair[1]);
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
    if (problem.delta != 0.0f && tile.row < tile.col + Shape::kTileN && tile.col < tile.row + Shape::kTileM) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int here = 16 * map_.warp + map_.lane / 4 - 2 * (map_.lane % 4);  // row - column of element 0
        const int ahead = tile.row - tile.col + first_row + 64 * r + here;
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) {
          if (ahead + 8 * (i / 2 % 2) == 8 * (i / 4) + i % 2) acc[r][i] += problem.delta;
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

  __device__ __forceinline__ void publish(uint32_t box, const GemmEntry& problem, int row, int col, int batch) const {
    fence_shared_for_async();
    named_barrier(barrier_id_, 128);
    if (leader_) tensor_store(&problem.out, box, col, row, batch);
  }

  // `part`: this thread's 32 accumulators of the box.
  template <bool kTransposed>
  __device__ __forceinline__ void store(const float* part, const GemmEntry& problem, int row, int col,
                                        int batch) {
    const uint32_t box = claim();
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      uint32_t fragments[4];
      pack_fragments<Element>(fragments, part + 8 * p);
      if constexpr (kTransposed) {
        store_fragments_transposed(box + map_.transposed(p), fragments);
      } else {
        store_fragments(box + map_.direct(p), fragments);
      }
    }
    publish(box, problem, row, col, batch);
  }

  __device__ __forceinline__ void store_on_diagonal(const float* part, const GemmEntry& problem, int row,
                                                    int batch) {
    const uint32_t box = claim();
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      uint32_t fragments[4];
      pack_fragments<Element>(fragments, part + 8 * p);
      store_fragments_transposed(box + map_.transposed(p), fragments);
    }
    named_barrier(barrier_id_, 128);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      uint32_t fragments[4];
      pack_fragments<Element>(fragments, part + 8 * p);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t r = 16 * map_.warp + 8 * (i & 1) + map_.lane / 4;
        const uint32_t c = 16 * p + 8 * (i >> 1) + 2 * (map_.lane % 4);
        const uint32_t address = box + r * 128 + ((c / 8 ^ r % 8) << 4) + c % 8 * 2;
        if (r > c) {
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(fragments[i]) : "memory");
        } else if (r == c) {
          asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(static_cast<uint16_t>(fragments[i])) : "memory");
        }
      }
    }
    publish(box, problem, row, row, batch);
  }

  uint32_t staging_, barrier_id_;
  bool leader_;
  FragmentMap map_;
  uint32_t next_ = 0;
};

}  // namespace muon_kernels::sm90
