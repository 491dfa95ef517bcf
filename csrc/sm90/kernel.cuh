// gemm_sm90_kernel: out = alpha A B + beta C + delta I for a list of problems (problem.h), in one persistent grid.
//
// A symmetric launch computes the lower triangle of tiles and mirrors it: A B and C must be symmetric, and the result is
// bitwise so.
//
// Limits: 16-bit elements; base addresses, all strides but the unit one, and sizes along the unit stride multiples of
// 16 bytes (the copy engine writes whole ones, also past the edge of a matrix); k >= 1; m, n, k < 2^31.
#pragma once

#include "persistent.cuh"

namespace muon_kernels::sm90 {

template <class Shape, class Kind>
class GemmTasks {
 public:
  __device__ __forceinline__ GemmTasks(const GemmTable& table, int rank, int clusters)
      : table_(table), schedule_(table, rank, clusters) {}

  __device__ __forceinline__ bool next() { return (task_ = schedule_.next()) >= 0; }

  __device__ __forceinline__ TileAt tile(uint32_t rank) const {
    return Walk<Shape, Kind::kSymmetric>::locate(table_, task_, rank);
  }

  __device__ __forceinline__ Product product() const {
    const GemmEntry& entry = table_.entries[entry_of(table_, task_)];
    return {&entry.a,
            &entry.b,
            table_.has_c ? &entry.c : nullptr,
            &entry.out,
            entry.factors,
            entry.m,
            entry.n,
            entry.k,
            table_.alpha,
            table_.beta,
            table_.delta};
  }

  template <class F>
  __device__ __forceinline__ void with_kind(F&& f) const {
    f(Kind());
  }

  __device__ __forceinline__ void wait_for_operands(const TileAt&) const {}

  template <class Epilogue>
  __device__ __forceinline__ void stored(const TileAt&, const Epilogue&) const {}

 private:
  const GemmTable& table_;
  Schedule schedule_;
  int task_ = 0;
};

template <typename Element, Major kMajorA, Major kMajorB, bool kSymmetric, class Shape>
__global__ void __launch_bounds__(kThreads, 1) gemm_sm90_kernel(const __grid_constant__ GemmTable table) {
  if (threadIdx.x >= 128 && static_cast<int>(threadIdx.x) - 128 < table.count) {
    const GemmEntry& problem = table.entries[threadIdx.x - 128];
    prefetch_tensor_map(&problem.a);
    prefetch_tensor_map(&problem.b);
    prefetch_tensor_map(&problem.out);
  }
  run_persistent<Element, Shape>([&](int rank, int clusters) {
    return GemmTasks<Shape, Kind<kMajorA, kMajorB, kSymmetric>>(table, rank, clusters);
  });
}

}  // namespace muon_kernels::sm90
