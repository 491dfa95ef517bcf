// The epilogue of gemm_apply_sm90_kernel for a consumer warpgroup: its accumulators times alpha are rounded to Element, as a product
// that is stored would be, and what apply does follows at once, on parameters of any dtype and alignment.
//
// Boxes of 64 x 64 pass through shared memory, so that a thread meets 8 neighbours of a row and a warp four whole rows.
#pragma once

#include "../elementwise/pack.cuh"
#include "../parameter_step.cuh"
#include "fragments.cuh"
#include "mainloop.cuh"

namespace muon_kernels::sm90 {

template <typename Element, typename Param, class Shape>
class ApplyEpilogue {
 public:
  static constexpr bool kThroughTensorMap = false;

  __device__ __forceinline__ ApplyEpilogue(uint32_t staging, uint32_t barrier_id, uint32_t thread,
                                           const ApplyTargets& targets)
      : targets_(targets),
        step_(targets.args),
        staging_(staging),
        barrier_id_(barrier_id),
        thread_(thread),
        map_{thread / 32, thread % 32} {}

  // Before the products of a tile: asks for the parameters that it will meet.
  __device__ __forceinline__ void expect(const GemmEntry& problem, const TileAt& tile, int first_row) const {
    if (targets_.overwrite) return;
    const ApplyTarget& target = targets_.list[problem.first_target + tile.batch];
    constexpr int kLine = 128 / sizeof(Param);
    constexpr int kLines = Shape::kTileN / kLine;
#pragma unroll
    for (int i = thread_; i < Shape::kRowsPerConsumer * kLines; i += 128) {
      const int row = tile.row + first_row + i / kLines, col = tile.col + i % kLines * kLine;
      if (row < problem.m && col < problem.n) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<Param*>(target.data) + row * target.row_stride + col));
      }
    }
  }

  template <int kN>
  __device__ __forceinline__ void run(float (&acc)[Shape::kMmaRows][kN / 2], const GemmEntry& problem,
                                      const TileAt& tile, int first_row, Ring<Shape>&) {
    const ApplyTarget& target = targets_.list[problem.first_target + tile.batch];
    const float step = step_.step(target.scale);
#pragma unroll
    for (int r = 0; r < Shape::kMmaRows; ++r) {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) acc[r][i] *= problem.alpha;
    }
#pragma unroll
    for (int r = 0; r < Shape::kMmaRows; ++r) {
      const int row = tile.row + first_row + 64 * r;
#pragma unroll
      for (int box = 0; box < kN / kBox; ++box) {
        const int col = tile.col + kBox * box;
        if (row >= problem.m || col >= problem.n) continue;
        write(&acc[r][32 * box], target, step, row, col, problem.m, problem.n);
      }
    }
  }

  __device__ __forceinline__ void finish() const {}

 private:
  static constexpr int kWidth = 8;  // elements of a row that a thread owns: 16 bytes in shared memory
  using Vector = Pack<Param, 16 / sizeof(Param)>;
  static constexpr int kVectors = kWidth * sizeof(Param) / 16;

  // `part`: this thread's 32 accumulators of the box.
  __device__ __forceinline__ void write(const float* part, const ApplyTarget& target, float step, int row, int col,
                                        int m, int n) {
    // Two boxes take turns: who writes one has passed the barrier that all came to after they had read it.
    const uint32_t box = staging_ + next_ * Shape::kStagingBytes;
    next_ ^= 1;
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      uint32_t fragments[4];
      pack_fragments<Element>(fragments, part + 8 * p);
      store_fragments(box + map_.direct(p), fragments);
    }
    named_barrier(barrier_id_, 128);
    if (step_.skip) return;
    const int here = col + kWidth * (thread_ % 8);
    Param* const first = static_cast<Param*>(target.data) + here;
    const bool aligned =
        (reinterpret_cast<uintptr_t>(first) | static_cast<uintptr_t>(target.row_stride * sizeof(Param))) % 16 == 0;
    const bool whole = aligned && here + kWidth <= n;
#pragma unroll 2
    for (uint32_t r = thread_ / 8; r < kBox; r += 16) {
      if (row + static_cast<int>(r) >= m) break;
      uint32_t pairs[kWidth / 2];
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                   : "r"(box + r * 128 + ((thread_ % 8 ^ r % 8) << 4))
                   : "memory");
      Param* const p = first + (row + static_cast<int64_t>(r)) * target.row_stride;
      if (whole) {
        write_vectors(p, pairs, step);
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const float2 pair = unpack<Element>(pairs[i / 2]);
          if (here + i < n) p[i] = from_float<Param>(next(p + i, step, i % 2 ? pair.y : pair.x));
        }
      }
    }
  }

  __device__ __forceinline__ float next(const Param* p, float step, float update) const {
    return targets_.overwrite ? update : stepped(to_float(*p), step_.decay, step, update);
  }

  __device__ __forceinline__ void write_vectors(Param* p, const uint32_t (&pairs)[kWidth / 2], float step) const {
    Vector value[kVectors] = {};
    if (!targets_.overwrite) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) value[v] = load_pack(reinterpret_cast<const Vector*>(p) + v);
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      Param& element = value[i * kVectors / kWidth].value[i % (kWidth / kVectors)];
      const float2 pair = unpack<Element>(pairs[i / 2]);
      element = from_float<Param>(next(&element, step, i % 2 ? pair.y : pair.x));
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) store_pack(reinterpret_cast<Vector*>(p) + v, value[v]);
  }

  const ApplyTargets& targets_;
  const ParameterStep step_;
  uint32_t staging_, barrier_id_, thread_;
  FragmentMap map_;
  uint32_t next_ = 0;
};

}  // namespace muon_kernels::sm90
