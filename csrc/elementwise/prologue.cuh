// What the two kernels that begin with a prologue share: the pass over one chunk, its tuning, and the tensors of a list.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../api.h"
#include "dispatch.cuh"
#include "matrices.cuh"
#include "pack.cuh"
#include "walk.cuh"

namespace muon_kernels {

// torch.lerp's formula: both branches are exact at their end of the interval.
__device__ inline float lerp(float a, float b, float weight) {
  return weight < 0.5f ? a + weight * (b - a) : b - (b - a) * (1.0f - weight);
}

// An Op of walk.cuh. kUse: of gradients and momenta; what it writes is for the next kernel.
template <typename G, typename M, typename O, Use kUse>
class Prologue {
 public:
  template <int W>
  struct Input {
    Pack<G, W> grad;
    Pack<M, W> momentum;
  };

  __device__ Prologue(const PrologueArgs& args, void* const (&data)[3])
      : args_(args),
        data_(data),
        scale_(args.grad_scale ? *args.grad_scale : 1.0f),
        skip_(args.found_inf && *args.found_inf != 0.0f) {}

  template <int W, class Span>
  __device__ Input<W> load(const Span& span) const {
    return {muon_kernels::load<G, W, 0, kUse>(data_[0], span),
            muon_kernels::load<M, W, 1, kUse>(data_[1], span)};
  }

  template <int W, class Span>
  __device__ void finish(const Span& span, Input<W>& input) {
    Pack<O, W> out;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      float g = to_float(input.grad.value[i]);
      float m = to_float(input.momentum.value[i]);
      if (args_.grad_scale) g = g / scale_;
      if (args_.maximize) g = -g;
      m = args_.ema ? lerp(m, g, args_.one_minus_momentum) : args_.momentum * m + g;
      const M stored = from_float<M>(m);
      input.momentum.value[i] = stored;
      m = to_float(stored);
      float u = m;
      if (args_.nesterov) u = args_.ema ? lerp(g, m, args_.momentum) : g + args_.momentum * m;
      out.value[i] = from_float<O>(skip_ ? 0.0f : u);
      const double square = to_float(out.value[i]);
      if (span.exists) sumsq_ += square * square;
    }
    if (!skip_) store<M, W, 1, kUse>(data_[1], span, input.momentum);
    store<O, W, 2>(data_[2], span, out);
  }

  __device__ double sumsq() const { return sumsq_; }

 private:
  const PrologueArgs& args_;
  void* const (&data_)[3];
  const float scale_;
  const bool skip_;
  double sumsq_ = 0.0;
};

// Operands of 16 bits throughout: less in flight a thread, and on Hopper more blocks. 1000 tensors of 64 MiB in all: 2 % (and
// 5 % slower in fp32); bench/NOTES.md.
template <typename G, typename M, typename O>
constexpr bool kNarrow = sizeof(G) == 2 && sizeof(M) == 2 && sizeof(O) == 2;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
constexpr int kNarrowBlocks = 6;
#else
constexpr int kNarrowBlocks = kMinBlocks;  // six make ptxas spill for other architectures
#endif

template <typename G, typename M, typename O, class View>
constexpr int kBlocks = kNarrow<G, M, O> && std::is_same_v<View, Flat<G, M, O>> ? kNarrowBlocks : kMinBlocks;

// A block's pass over a chunk; the thread's sum of squares.
template <typename G, typename M, typename O, Use kUse, class View>
__device__ double walk_prologue(const View& view, uint32_t chunk, const PrologueArgs& args) {
  Prologue<G, M, O, kUse> op(args, view.data);
  walk_chunk<kNarrow<G, M, O> ? 1 : 2>(view, chunk, op);
  return op.sumsq();
}

// tensors(f) calls f(matrices) for every item until one call fails.
template <typename G, typename M, typename O>
auto tensors_of(const PrologueItem* items, int64_t count) {
  return [=](auto&& f) {
    for (const PrologueItem* item = items; item < items + count; ++item) {
      const Matrices<G, M, O> matrices(item->rows, item->cols, {item->grad, item->momentum, item->out});
      if (const cudaError_t error = f(matrices)) return error;
    }
    return cudaSuccess;
  };
}

}  // namespace muon_kernels
