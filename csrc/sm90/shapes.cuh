// The tile shapes that are compiled, and which one a problem list gets.
#pragma once

#include "tile.cuh"

namespace muon_kernels::sm90 {

using WidePair = Tile<128, 256, 4, 2, 2, false>;
using Pair = Tile<128, 128, 6, 2, 2, true>;
using Oblong = Tile<128, 192, 4, 4, 1, true>;
using Wide = Tile<128, 256, 4, 2, 1, false>;
using Small = Tile<64, 64, 8, 4, 1, true>;
using Square = Tile<128, 128, 5, 4, 1, true>;

// Calls f(index, shape) for every shape of an op.
template <bool kSymmetric, class F>
void for_each_shape(F&& f) {
  f(0, WidePair());
  f(1, Pair());
  if constexpr (!kSymmetric) f(2, Oblong());  // its 192 accumulators and the mirrored store do not fit in registers
  f(3, Wide());
  f(4, Small());
  f(5, Square());
}

}  // namespace muon_kernels::sm90
