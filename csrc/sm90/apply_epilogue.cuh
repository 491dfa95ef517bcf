// The epilogue of gemm_apply_sm90_kernel for a consumer warpgroup: its accumulators times alpha are rounded to Element, as a product
// that is stored would be, and what apply does follows at once, on parameters of any dtype and alignment.
//
// Boxes of 64 x 64 pass through shared memory, so that a thread meets 8 neighbours of a row and a warp four whole rows.
// Parameters are not prefetched while the products run: that took 5 to 20 % longer.
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
  static constexpr int kLoaderRegisters = 24, kConsumerRegisters = 240;  // without a C to load, 24 are enough
  static constexpr int kKeptStages = 0;

  __device__ __forceinline__ ApplyEpilogue(const GemmTable&, uint32_t staging, uint32_t barrier_id, uint32_t thread,
                                           const ApplyTargets& targets)
      : targets_(targets),
        staging_(staging),
        barrier_id_(barrier_id),
        thread_(thread),
        map_{thread / 32, thread % 32} {}

  template <int kMmaRows, int kN>
  __device__ __forceinline__ void run(float (&acc)[kMmaRows][kN / 2], const GemmEntry& problem,
                                      const TileAt& tile, int first_row, Ring<Shape>&) {
    const ApplyTarget& target = targets_.list[problem.first_target + tile.batch];
    const ParameterStep rates(targets_.args);  // here and not once a block: registers are short during the products
    const Step step{rates.step(target.scale), rates.decay, rates.skip};
#pragma unroll
    for (int r = 0; r < kMmaRows; ++r) {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) acc[r][i] *= problem.alpha;
    }
    constexpr int kBoxes = kN / kBox, kAll = kMmaRows * kBoxes;
    const auto at = [&](int i) {
      return Box(target, thread_, tile.row + first_row + 64 * (i / kBoxes), tile.col + kBox * (i % kBoxes), problem.m,
                 problem.n);
    };
    uint32_t staged[2];
    Params params[2];
    const auto prepare = [&](int i) {
      staged[i % 2] = stage(&acc[i / kBoxes][32 * (i % kBoxes)]);
      params[i % 2] = load(at(i));
    };
    prepare(0);
#pragma unroll
    for (int i = 0; i < kAll; ++i) {
      if (kAhead && i + 1 < kAll) prepare(i + 1);
      named_barrier(barrier_id_, 128);
      write(at(i), staged[i % 2], step, params[i % 2]);
      if (!kAhead && i + 1 < kAll) prepare(i + 1);
    }
  }

  __device__ __forceinline__ void finish() const {}

 private:
  static constexpr int kWidth = 8;  // elements of a row that a thread owns: 16 bytes in shared memory
  static constexpr int kRows = 4;   // rows of a box that it meets, 16 apart
  using Vector = Pack<Param, 16 / sizeof(Param)>;
  static constexpr int kVectors = kWidth * sizeof(Param) / 16;

  // Parameters come while those of the box before are written. Not those of 32 bits: two boxes of them take too many
  // registers (3 to 5 % slower).
  static constexpr bool kAhead = sizeof(Param) == 2;

  // Parameters of a thread in one box, as they lie in memory: as elements those of 16 bits would take a register each.
  struct Params {
    Word<Vector> of[kRows][kVectors];
  };

  struct Step {
    float size, decay;
    bool skip;
  };

  // What a thread meets of a box.
  struct Box {
    Param* first;
    int64_t stride;  // between its rows
    int rows, cols;  // number of them inside the matrix
    bool vectors;

    __device__ __forceinline__ Box(const ApplyTarget& target, uint32_t thread, int row, int col, int m, int n) {
      const int here = col + kWidth * static_cast<int>(thread % 8);
      const int mine = row + static_cast<int>(thread / 8);
      first = static_cast<Param*>(target.data) + mine * target.row_stride + here;
      stride = 16 * target.row_stride;
      rows = min((m - mine + 15) / 16, kRows);
      cols = min(n - here, kWidth);
      vectors = cols == kWidth &&
                (reinterpret_cast<uintptr_t>(first) | static_cast<uintptr_t>(stride * sizeof(Param) / 16)) % 16 == 0;
    }
  };

  __device__ __forceinline__ Params load(const Box& box) const {
    Params params = {};
    if (targets_.overwrite || !box.vectors) return params;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (i < box.rows) params.of[i][v] = reinterpret_cast<const Word<Vector>*>(box.first + i * box.stride)[v];
      }
    }
    return params;
  }

  // Rounds a box and brings it to shared memory; returns where. `part`: this thread's 32 accumulators of it.
  __device__ __forceinline__ uint32_t stage(const float* part) {
    // Three boxes take turns: who writes one has passed the barrier that all came to after they had read it.
    static_assert(Shape::kStagingBoxes >= 3);
    const uint32_t box = staging_ + next_ * Shape::kStagingBytes;
    next_ = (next_ + 1) % 3;
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      uint32_t fragments[4];
      pack_fragments<Element>(fragments, part + 8 * p);
      store_fragments(box + map_.direct(p), fragments);
    }
    return box;
  }

  __device__ __forceinline__ void write(const Box& box, uint32_t staged, const Step& step, const Params& params) const {
    if (step.skip) return;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i >= box.rows) break;
      const uint32_t r = thread_ / 8 + 16 * i;
      const uint32_t source = staged + r * 128 + ((thread_ % 8 ^ r % 8) << 4);
      Param* const p = box.first + i * box.stride;
      if (box.vectors) {
        uint32_t pairs[kWidth / 2];
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                     : "r"(source));
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          constexpr int kElements = kWidth / kVectors;
          Vector vector;
          memcpy(&vector, &params.of[i][v], sizeof(vector));
#pragma unroll
          for (int e = 0; e < kElements; ++e) {
            const float2 pair = unpack<Element>(pairs[(v * kElements + e) / 2]);
            vector.value[e] = from_float<Param>(next(&vector.value[e], step, e % 2 ? pair.y : pair.x));
          }
          store_pack(reinterpret_cast<Vector*>(p) + v, vector);
        }
      } else {
#pragma unroll 1
        for (int e = 0; e < box.cols; ++e) {
          uint16_t bits;
          asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(source + 2 * e));
          p[e] = from_float<Param>(next(p + e, step, unpack<Element>(bits).x));
        }
      }
    }
  }

  __device__ __forceinline__ float next(const Param* p, const Step& step, float update) const {
    return targets_.overwrite ? update : stepped(to_float(*p), step.decay, step.size, update);
  }

  const ApplyTargets& targets_;
  uint32_t staging_, barrier_id_, thread_;
  FragmentMap map_;
  uint32_t next_ = 0;
};

}  // namespace muon_kernels::sm90
