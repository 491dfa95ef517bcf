// The tile shapes that are compiled; choose.cu picks one for a problem list. Ratios to torch.matmul and to the floor
// are those of bench/NOTES.md.
#pragma once

#include "tile.cuh"

namespace muon_kernels::sm90 {

// Large k: least traffic through shared memory and L2; 8192^3 at 0.99 of torch's time. Three stages and four staging
// boxes were 1 % slower than four and two.
using WidePair = Tile<128, 256, 4, 2, 2, false>;
// Small k, where stores must hide behind products: symmetric 16 x 2048^2 at 1.18 of the floor against 1.24 for Wide.
// Five stages and four staging boxes were 0 to 5 % slower than six and two.
using Pair = Tile<128, 128, 6, 2, 2, true>;
// Full products of small k: 12 x 768 x 3072 at 0.92 of torch's time against 0.96 for Pair.
using Oblong = Tile<128, 192, 4, 4, 1, true>;
// Symmetric 4096^2: 256 whole and 16 half tiles are exactly two rounds of 132; 1.14 of the floor against 1.21 for Pair.
using Wide = Tile<128, 256, 4, 2, 1, false>;
// Few tiles: symmetric 768^2 alone in 5.2 us against 8.8 for Square.
using Small = Tile<64, 64, 8, 4, 1, true>;
// Many very small matrices: 256 x 128^2 in 6.6 us against 8.2 for Small.
using Square = Tile<128, 128, 5, 4, 1, true>;

// Calls f(index, shape) for every shape of an op.
template <bool kSymmetric, class F>
void for_each_shape(F&& f) {
  f(0, WidePair());
  f(1, Pair());
  if constexpr (!kSymmetric) f(2, Oblong());  // with mirrored stores its 192 accumulators spill
  f(3, Wide());
  f(4, Small());
  f(5, Square());
}

// WidePair for gemm_apply, whose epilogue needs three staging boxes.
using ApplyPair = Tile<128, 256, 3, 3, 2, false>;

// Calls f(index, shape) for every shape of gemm_apply, under the index of the shape whose costs it has. Its operands are
// as large as its parameters: never many small matrices.
template <class F>
void for_each_apply_shape(F&& f) {
  f(0, ApplyPair());
  f(2, Oblong());
  f(4, Small());
}

}  // namespace muon_kernels::sm90
