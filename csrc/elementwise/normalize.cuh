// What all ways of normalize share: the factor of a matrix, one pass that applies it, and the matrices of an item.
#pragma once

#include <cfloat>
#include <cstdint>

#include "../api.h"
#include "matrices.cuh"
#include "pack.cuh"

namespace muon_kernels {

// launch_normalize where args.sumsq is null.
cudaError_t launch_normalize_clusters(const NormalizeItem* items, int64_t count, const NormalizeArgs& args,
                                      cudaStream_t stream);

// Computed in float64 and rounded to fp32; 0 for a norm below fp32's smallest normal number, NaN for one that is not finite.
__device__ inline float factor(double sumsq, const NormalizeArgs& args) {
  const double norm = args.safety_factor * sqrt(sumsq);
  if (!isfinite(norm)) return NAN;
  return norm < FLT_MIN ? 0.0f : static_cast<float>(1.0 / fmax(norm, args.eps));
}

// An Op of walk.cuh. kX, kOut: the operands of the view; in place (kX == kOut) for X and O of one size.
template <typename X, typename O, int kX = 0, int kOut = 1>
class Normalize {
 public:
  template <int W>
  struct Input {
    Pack<X, W> x;
  };

  static_assert(kX != kOut || sizeof(X) == sizeof(O));

  template <int kOperands>
  __device__ Normalize(float factor, void* const (&data)[kOperands]) : x_(data[kX]), out_(data[kOut]), factor_(factor) {}

  template <int W, class Span>
  __device__ Input<W> load(const Span& span) const {
    return {muon_kernels::load<X, W, kX>(x_, span)};
  }

  template <int W, class Span>
  __device__ void finish(const Span& span, const Input<W>& input) const {
    Pack<O, W> out;
#pragma unroll
    for (int i = 0; i < W; ++i) out.value[i] = from_float<O>(to_float(input.x.value[i]) * factor_);
    store<O, W, kOut, kUse>(out_, span, out);
  }

 private:
  // In place, L2 has others to keep: what waits to be normalised.
  static constexpr Use kUse = kX == kOut ? Use::kOnce : Use::kAgain;

  const void* x_;
  void* out_;
  const float factor_;
};

// Matrix i of an item's batch, with its result.
template <typename X, typename O>
Matrices<X, O> matrix_of(const NormalizeItem& item, int64_t i) {
  const MatrixView x{static_cast<X*>(item.x.data) + i * item.x_batch_stride, item.x.row_stride, item.x.col_stride};
  const MatrixView out{static_cast<O*>(item.out.data) + i * item.out_batch_stride, item.out.row_stride,
                       item.out.col_stride};
  return Matrices<X, O>(item.rows, item.cols, {x, out});
}

}  // namespace muon_kernels
