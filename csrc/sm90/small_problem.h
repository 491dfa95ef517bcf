// What a launch of chains of small matrices passes to the device, by value.
//
// In shared memory a matrix lies in boxes of 64 columns, one box after the other, each of all rows; rows and columns
// are filled up with zeros to multiples of 64. A box is in the 128-byte swizzle that wgmma.cuh describes, so that the
// same bytes serve as K-major operand, as MN-major operand, as C and as result.
#pragma once

#include <cstdint>

namespace muon_kernels::sm90 {

inline constexpr int kSmallEntries = 8;
inline constexpr int kSmallTransfers = 48;
inline constexpr int kSmallProducts = 128;  // 12 KB of kernel parameters

struct SharedMatrix {
  int offset;      // bytes from the start of the block's matrices
  int box_stride;  // bytes from a box to the next, 128 a row
};

// A matrix in shared memory and where it lies in the workspace, in elements from its start.
struct SmallTransfer {
  SharedMatrix shared;
  int rows, cols;
  int64_t offset, batch_stride, row_stride;
};

// out = alpha A B + beta C + delta I, with A [m, k], B [k, n] and C, out [m, n], the latter row-major; alpha, beta and delta
// times powers of the gain that was found last, 1 at the start. Or no product: finds the gain (api.h) of A [m, m].
struct SmallProduct {
  SharedMatrix a, b, c, out;
  int m, n, k;
  float alpha, beta, delta;
  bool a_is_mn_major, b_is_mn_major;  // not A alone
  bool has_c;
  bool symmetric;
  bool finds_gain;
  int powers[3];
};

// A chain: a block for each matrix, and ranges of the table's lists.
struct SmallEntry {
  int first_block;
  int first_load, first_store, end_store;
  int first_product, end_product;
};

struct SmallTable {
  void* workspace;
  int count;
  SmallEntry entries[kSmallEntries];
  SmallTransfer transfers[kSmallTransfers];
  SmallProduct products[kSmallProducts];
};

}  // namespace muon_kernels::sm90
