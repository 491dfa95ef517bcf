// Brings a product into an order of memory that the kernels have instances for.
#pragma once

#include <utility>

#include "../api.h"

namespace muon_kernels::sm90 {

inline MatrixBatch transposed(const MatrixBatch& x) { return {x.data, x.batch_stride, x.col_stride, x.row_stride}; }

// K-major operands have unit stride along k.
inline bool a_is_mn_major(const GemmItem& item) { return item.a.col_stride != 1; }
inline bool b_is_mn_major(const GemmItem& item) { return item.b.row_stride != 1; }

inline GemmItem transposed(const GemmItem& item) {
  GemmItem flipped = item;
  flipped.a = transposed(item.b);
  flipped.b = transposed(item.a);
  flipped.c = transposed(item.c);
  flipped.out = transposed(item.out);
  std::swap(flipped.m, flipped.n);
  return flipped;
}

// The copy engine writes rows: a column-major result is computed as its transpose. A symmetric result can be either,
// which saves the instances for an MN-major A with a K-major B.
template <bool kSymmetric>
GemmItem oriented(const GemmItem& item) {
  GemmItem result = item;
  if (item.out.col_stride != 1) result = transposed(item);
  if (kSymmetric && result.c.col_stride != 1) result.c = transposed(result.c);
  if (kSymmetric && a_is_mn_major(result) && !b_is_mn_major(result)) {
    const MatrixBatch c = result.c, out = result.out;
    result = transposed(result);
    result.c = c;
    result.out = out;
  }
  return result;
}

// The same for a product of a chain, whose buffers are row-major: its result becomes so.
inline ChainProduct oriented(ChainProduct p) {
  const auto flipped = [](const ChainOperand& x) { return ChainOperand{x.buffer, x.buffer >= 0 && !x.transposed}; };
  const bool symmetric = p.kind == ProductKind::kSymmGemm;
  // Of two symmetric operands either can be read transposed; with the rows of both the copies are alike.
  p.b.transposed = p.b.transposed || (symmetric && !p.a.transposed);
  if (p.out.transposed) {
    std::swap(p.a, p.b);
    for (ChainOperand* x : {&p.a, &p.b, &p.c, &p.out}) *x = flipped(*x);
  }
  if (symmetric) p.c.transposed = false;
  return p;
}

inline int majors(const GemmItem& item) { return 2 * a_is_mn_major(item) + b_is_mn_major(item); }

}  // namespace muon_kernels::sm90
