// small_chains_kernel: chains of small matrices, a block a matrix. It loads what the chain starts from, runs all
// products one after the other in shared memory (small_problem.h), and stores what is asked for afterwards.
//
// Every element takes the steps that it takes in gemm_sm90_kernel, in the same order, so that the bits are the same:
// the same instruction over ascending k from zero, then alpha, C, delta, and one rounding; a symmetric product computes
// its lower triangle and mirrors it. What fills matrices up stays zero, as the copy engine's fill is.
#pragma once

#include "../dependent_launch.cuh"
#include "fragments.cuh"
#include "gain.cuh"
#include "ptx.cuh"
#include "small_problem.h"
#include "wgmma.cuh"

namespace muon_kernels::sm90 {

inline constexpr int kSmallThreads = 256;  // two warpgroups, which take turns at the tiles of a product

// A matrix between the workspace and shared memory: calls f(its shared address, its address, bytes of it in the matrix)
// for every 16 bytes.
template <class F>
__device__ __forceinline__ void for_each_piece(const SmallTable& table, const SmallTransfer& matrix, uint32_t base,
                                               int64_t index, F&& f) {
  constexpr int kRows = kSmallThreads / 8;  // at a time
  const int piece = threadIdx.x % 8, first_row = threadIdx.x / 8;
  uint32_t box = base + matrix.shared.offset + first_row * 128 + ((piece ^ first_row % 8) << 4);
  char* const corner = static_cast<char*>(table.workspace) +
                       2 * (matrix.offset + index * matrix.batch_stride + first_row * matrix.row_stride);
  const int filled_rows = matrix.shared.box_stride / 128;
  for (int col = 8 * piece; col < (matrix.cols + 63) / 64 * 64; col += 64, box += matrix.shared.box_stride) {
    const int in_row = max(0, min(16, 2 * (matrix.cols - col)));
    uint32_t shared = box;
    char* global = corner + 2 * col;
#pragma unroll 4
    for (int row = first_row; row < filled_rows; row += kRows) {
      f(shared, global, row < matrix.rows ? in_row : 0);
      shared += kRows * 128;
      global += 2 * kRows * matrix.row_stride;
    }
  }
}

// 64 x kN of A B; `row` and `col` are those of the first element.
template <typename Element, Major kMajorA, Major kMajorB, int kN>
__device__ __forceinline__ void multiply_small(float (&acc)[kN / 2], const SmallProduct& p, uint32_t base, int row,
                                               int col) {
  const uint32_t box_a = p.a.box_stride, box_b = p.b.box_stride;
  uint64_t a = operand_descriptor<kMajorA>(
      base + p.a.offset + (kMajorA == Major::kMN ? row / 64 * box_a : row * 128), box_a);
  uint64_t b = operand_descriptor<kMajorB>(
      base + p.b.offset + (kMajorB == Major::kMN ? col / 64 * box_b : col * 128), box_b);
  const uint32_t next_a = (kMajorA == Major::kMN ? kBoxBytes : box_a) >> 4;
  const uint32_t next_b = (kMajorB == Major::kMN ? kBoxBytes : box_b) >> 4;
  for (int k = 0; k < p.k; k += kTileK, a += next_a, b += next_b) {
    pin_registers<kN / 2>(acc);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTileK / 16; ++step) {
      wgmma<Element, kMajorA, kMajorB, kN>(acc, a + step * kStepK16<kMajorA>, b + step * kStepK16<kMajorB>);
    }
    wgmma_commit();
    pin_registers<kN / 2>(acc);
  }
  wgmma_wait<0>();
  pin_registers<kN / 2>(acc);
}

// The gain of A, in every thread of the block.
template <typename Element>
__device__ __forceinline__ float small_gain(const SmallProduct& p, uint32_t base) {
  const int piece = threadIdx.x % 8, rows = p.a.box_stride / 128;
  float square = 0.0f, trace = 0.0f;
  for (int col = 8 * piece; col < rows; col += 64) {
    for (int row = threadIdx.x / 8; row < rows; row += kSmallThreads / 8) {
      const uint32_t address = base + p.a.offset + col / 64 * p.a.box_stride + row * 128 + ((piece ^ row % 8) << 4);
      const uint4 data = *static_cast<const uint4*>(__cvta_shared_to_generic(address));
      const uint32_t pairs[] = {data.x, data.y, data.z, data.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 x = unpack<Element>(pairs[i]);
        square = fmaf(x.x, x.x, fmaf(x.y, x.y, square));
        if (row == col + 2 * i) trace += x.x;
        if (row == col + 2 * i + 1) trace += x.y;
      }
    }
  }
  const BlockSums total = block_sums<kSmallThreads / 32>(square, trace);
  return gain_from(total.square, total.trace);
}

struct Factors {
  float alpha, beta, delta;
};

// acc <- alpha acc + beta C + delta I for a box of 64 x 64, and zero outside the matrix.
template <typename Element>
__device__ __forceinline__ void combine_small(float* acc, const SmallProduct& p, const Factors& factors, uint32_t base,
                                              int row, int col, const FragmentMap& map) {
#pragma unroll
  for (int i = 0; i < 32; ++i) acc[i] *= factors.alpha;
  if (p.has_c) {
    const uint32_t box = base + p.c.offset + col / 64 * p.c.box_stride + row * 128;
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      uint32_t fragment[4];
      load_fragments(fragment, box + map.direct(quarter));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float* pair = &acc[8 * quarter + 4 * (i >> 1) + 2 * (i & 1)];
        const float2 c = unpack<Element>(fragment[i]);
        pair[0] = fmaf(factors.beta, c.x, pair[0]);
        pair[1] = fmaf(factors.beta, c.y, pair[1]);
      }
    }
  }
  const int at_row = 16 * map.warp + map.lane / 4, at_col = 2 * (map.lane % 4);  // element 0 in the box
  if (factors.delta != 0.0f && row == col) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (at_row + 8 * (i / 2 % 2) == at_col + 8 * (i / 4) + i % 2) acc[i] += factors.delta;
    }
  }
  if (row + 64 > p.m || col + 64 > p.n) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const bool inside = row + at_row + 8 * (i / 2 % 2) < p.m && col + at_col + 8 * (i / 4) + i % 2 < p.n;
      if (!inside) acc[i] = 0.0f;
    }
  }
}

// An 8x8 fragment on the diagonal: its upper half becomes the transpose of its lower half.
__device__ __forceinline__ uint32_t mirrored_fragment(uint32_t fragment, uint32_t lane) {
  const uint32_t other = transposed_fragment(fragment);
  const uint32_t r = lane / 4, c = 2 * (lane % 4);
  return r > c ? fragment : r == c ? (fragment & 0xFFFF) | (other & 0xFFFF0000) : other;
}

// Rounds a box of 64 x 64 and stores it; that of a symmetric product twice, the second time transposed. Of a box on the
// diagonal each warp stores what lies below it, and its own 16 x 16 once.
template <typename Element>
__device__ __forceinline__ void store_small(const float* acc, const SmallProduct& p, uint32_t base, int row, int col,
                                            const FragmentMap& map) {
  const uint32_t out = base + p.out.offset;
  const uint32_t box = out + col / 64 * p.out.box_stride + row * 128;
  const uint32_t mirror = out + row / 64 * p.out.box_stride + col * 128;
  const bool on_diagonal = p.symmetric && row == col;
#pragma unroll
  for (int quarter = 0; quarter < 4; ++quarter) {
    if (on_diagonal && quarter > map.warp) continue;
    uint32_t fragments[4];
    pack_fragments<Element>(fragments, acc + 8 * quarter);
    if (on_diagonal && quarter == map.warp) {
      fragments[0] = mirrored_fragment(fragments[0], map.lane);
      fragments[2] = transposed_fragment(fragments[1]);
      fragments[3] = mirrored_fragment(fragments[3], map.lane);
    } else if (p.symmetric) {
      store_fragments_transposed(mirror + map.transposed(quarter), fragments);
    }
    store_fragments(box + map.direct(quarter), fragments);
  }
}

template <typename Element, Major kMajorA, Major kMajorB, int kN>
__device__ __forceinline__ void compute_small_tile(const SmallProduct& p, const Factors& factors, uint32_t base, int row,
                                                   int col, const FragmentMap& map) {
  float acc[kN / 2] = {};
  multiply_small<Element, kMajorA, kMajorB, kN>(acc, p, base, row, col);
#pragma unroll
  for (int box = 0; box < kN / 64; ++box) {
    combine_small<Element>(&acc[32 * box], p, factors, base, row, col + 64 * box, map);
    store_small<Element>(&acc[32 * box], p, base, row, col + 64 * box, map);
  }
}

// The tiles of one product that are warpgroup `turn`'s. A symmetric product has those that meet the lower triangle.
template <typename Element, Major kMajorA, Major kMajorB>
__device__ __forceinline__ void compute_small(const SmallProduct& p, const Factors& factors, uint32_t base, uint32_t turn,
                                              const FragmentMap& map) {
  for (int row = 0; row < p.m; row += 64) {
    const int cols = p.symmetric ? row + 64 : p.n;
    for (int col = 0; col < cols; col += 128, turn ^= 1) {
      if (turn != 0) continue;
      if (cols - col > 64) {
        compute_small_tile<Element, kMajorA, kMajorB, 128>(p, factors, base, row, col, map);
      } else {
        compute_small_tile<Element, kMajorA, kMajorB, 64>(p, factors, base, row, col, map);
      }
    }
  }
}

template <typename Element>
__global__ void __launch_bounds__(kSmallThreads, 2) small_chains_kernel(const __grid_constant__ SmallTable table) {
  extern __shared__ uint8_t shared[];
  const uint32_t base = (shared_address(shared) + 1023) & ~1023u;
  const int block = blockIdx.x;
  int at = 0;
  while (at + 1 < table.count && block >= table.entries[at + 1].first_block) ++at;
  const SmallEntry& entry = table.entries[at];
  const int64_t index = block - entry.first_block;

  grid_release_dependents();
  grid_wait_for_dependencies();  // nothing above touches memory that another kernel writes

  for (int i = entry.first_load; i < entry.first_store; ++i) {
    for_each_piece(table, table.transfers[i], base, index,
                   [](uint32_t to, const char* from, int bytes) { copy_async(to, from, bytes); });
  }
  copy_async_wait();

  const uint32_t warpgroup = threadIdx.x / 128;
  const FragmentMap map{threadIdx.x / 32 % 4, threadIdx.x % 32};
  float gain = 1.0f;
  for (int i = entry.first_product; i < entry.end_product; ++i) {
    fence_shared_for_async();
    __syncthreads();
    const SmallProduct& p = table.products[i];
    if (p.finds_gain) {
      gain = small_gain<Element>(p, base);
      continue;
    }
    const Factors factors{p.alpha * power(gain, p.powers[0]), p.beta * power(gain, p.powers[1]),
                          p.delta * power(gain, p.powers[2])};
    if (!p.b_is_mn_major) {
      compute_small<Element, Major::kK, Major::kK>(p, factors, base, warpgroup, map);
    } else if (!p.a_is_mn_major) {
      compute_small<Element, Major::kK, Major::kMN>(p, factors, base, warpgroup, map);
    } else {
      compute_small<Element, Major::kMN, Major::kMN>(p, factors, base, warpgroup, map);
    }
  }
  __syncthreads();
  for (int i = entry.first_store; i < entry.end_store; ++i) {
    for_each_piece(table, table.transfers[i], base, index, [](uint32_t from, char* to, int bytes) {
      const uint4 data = *static_cast<const uint4*>(__cvta_shared_to_generic(from));
      if (bytes > 0) *reinterpret_cast<uint4*>(to) = data;
    });
  }
}

}  // namespace muon_kernels::sm90
