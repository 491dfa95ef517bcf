// Sums that are the same on every run: thread, then warp, then block, then the blocks of a tensor, always in one order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "block_sum.cuh"
#include "launch.cuh"
#include "table.cuh"

namespace muon_kernels {

// Where a tensor's partial sums lie.
struct Partials {
  uint32_t first, count;
};

struct PartialsTable {
  static constexpr int kCapacity = kTableBytes / sizeof(Partials);
  Partials of[kCapacity];
};

// The sum of a tensor's partial sums over a block, in the threads of its first warp.
__device__ inline double sum_in_order(const double* partials, uint32_t count) {
  constexpr int kBatch = 16;  // loads in flight: a tensor of 2^24 elements needs one round trip
  double sum = 0.0;
  for (uint32_t base = threadIdx.x; base < count; base += kBatch * kThreads) {
    double value[kBatch];
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) value[i] = base + i * kThreads < count ? partials[base + i * kThreads] : 0.0;
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) sum += value[i];
  }
  return block_sum(sum);
}

static __global__ void __launch_bounds__(kThreads)
    sum_partials_kernel(const __grid_constant__ PartialsTable table, const double* partials, double* sumsq) {
  const Partials own = table.of[blockIdx.x];
  grid_release_dependents();
  grid_wait_for_dependencies();
  const double sum = sum_in_order(partials + own.first, own.count);
  if (threadIdx.x == 0) sumsq[blockIdx.x] = sum;
}

inline cudaError_t sum_partials(const std::vector<Partials>& tensors, const double* partials, double* sumsq,
                                cudaStream_t stream) {
  const int64_t count = static_cast<int64_t>(tensors.size());
  for (int64_t begin = 0; begin < count; begin += PartialsTable::kCapacity) {
    const int64_t size = std::min<int64_t>(count - begin, PartialsTable::kCapacity);
    PartialsTable table;
    std::copy_n(tensors.begin() + begin, size, table.of);
    const cudaError_t error =
        launch(sum_partials_kernel, static_cast<uint32_t>(size), stream, table, partials, sumsq + begin);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Number of partial sums of a list of matrices: one a block. `tensors` is called as tensors(f) and calls f(matrices).
template <typename... Ts, class Tensors>
int64_t count_partials(Tensors&& tensors) {
  int64_t total = 0;
  tensors([&](const Matrices<Ts...>& matrices) {
    return matrices.visit([&](const auto& view) {
      total += view.chunks();
      return cudaSuccess;
    });
  });
  return total;
}

// Launches a kernel whose blocks each leave one sum, `launch_table(table, blocks, partials of block 0)`, for all matrices,
// and adds up what belongs to one matrix. The dense ones' partial sums come first.
template <typename... Ts, class Tensors, class LaunchTable>
cudaError_t launch_summed(Tensors&& tensors, LaunchTable&& launch_table, double* partials, double* sumsq,
                          cudaStream_t stream) {
  uint32_t next[2] = {0, 0};  // of dense and of strided matrices: the next to be given away
  tensors([&](const Matrices<Ts...>& matrices) {
    return matrices.visit([&](const auto& view) {
      if (matrices.dense()) next[1] += static_cast<uint32_t>(view.chunks());
      return cudaSuccess;
    });
  });
  uint32_t launched[2] = {next[0], next[1]};
  const auto launch_next = [&](const auto& table, uint32_t blocks) {
    constexpr bool kStrided = !std::is_same_v<typename std::decay_t<decltype(table)>::ViewType, Flat<Ts...>>;
    const cudaError_t error = launch_table(table, blocks, partials + launched[kStrided]);
    launched[kStrided] += blocks;
    return error;
  };
  MultiTensorLaunch<NoPayload, decltype(launch_next), Ts...> launches(launch_next);
  std::vector<Partials> all;
  const cudaError_t error = tensors([&](const Matrices<Ts...>& matrices) {
    uint32_t& mine = next[!matrices.dense()];
    all.push_back({mine, 0});
    return matrices.visit([&](const auto& view) {
      mine += static_cast<uint32_t>(view.chunks());
      all.back().count = mine - all.back().first;
      return launches.add(view, {});
    });
  });
  if (error != cudaSuccess) return error;
  if (const cudaError_t last = launches.finish()) return last;
  return sum_partials(all, partials, sumsq, stream);
}

}  // namespace muon_kernels
