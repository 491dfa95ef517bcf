// One thread's sum of squares of what it walks over, in float64, so that nothing overflows or vanishes.
#pragma once

#include "pack.cuh"

namespace muon_kernels {

// An Op of walk.cuh; X: element type of operand 0 of the view, which lies at `x`.
template <typename X>
class Squares {
 public:
  template <int W>
  struct Input {
    Pack<X, W> x;
  };

  __device__ explicit Squares(const void* x) : x_(x) {}

  template <int W, class Span>
  __device__ Input<W> load(const Span& span) const {
    return {muon_kernels::load<X, W, 0>(x_, span)};
  }

  template <int W, class Span>
  __device__ void finish(const Span&, const Input<W>& input) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const double value = to_float(input.x.value[i]);  // 0 where there is no element
      sum_ += value * value;
    }
  }

  __device__ double sum() const { return sum_; }

 private:
  const void* x_;
  double sum_ = 0.0;
};

}  // namespace muon_kernels
