// chain_sm90_kernel: whole chains of products in one persistent grid, without a barrier between the links of a chain.
//
// The tasks of all links stand in one order: the chains follow each other; a chain's matrices go in bands; in a band the
// links follow each other, then the matrices, then the tiles. Clusters take every clusters-th task. A task waits, before
// it loads, until all earlier links of its own matrix are stored (a counter per matrix), so that one matrix's last tiles
// overlap others' next link, and a band small enough stays in L2. All waiting is for tasks that come earlier in the
// order: as long as every block is resident (a cooperative launch), somebody can always proceed.
//
// A buffer may be overwritten by a later link of the same matrix, since that waits for all earlier ones.
#pragma once

#include "persistent.cuh"

namespace muon_kernels::sm90 {

template <class Shape>
class ChainTasks {
 public:
  static constexpr uint32_t kStoresPerTask = Shape::kCluster * (Shape::kAlternating ? 1 : kConsumers);

  __device__ __forceinline__ ChainTasks(const ChainTable& table, int rank, int clusters)
      : table_(table), offset_(rank - clusters), clusters_(clusters), link_(table.chains[0].first_link) {}

  __device__ __forceinline__ bool next() {
    offset_ += clusters_;
    while (chain_ < table_.count) {
      const Chain& chain = table_.chains[chain_];
      const int here = min(chain.band, chain.batch - first_) * table_.links[link_].tasks;
      if (offset_ < here) return true;
      offset_ -= here;
      if (++link_ < chain.first_link + chain.links) continue;
      first_ += chain.band;
      if (first_ >= chain.batch) {
        first_ = 0;
        ++chain_;
      }
      link_ = table_.chains[min(chain_, table_.count - 1)].first_link;
    }
    return false;
  }

  __device__ __forceinline__ TileAt tile(uint32_t rank) const {
    const ChainLink& link = table_.links[link_];
    const int matrix = offset_ / link.tasks;
    const int task = offset_ - matrix * link.tasks;
    TileAt tile;
    tile.entry = table_.chains[chain_].first_matrix + first_ + matrix;
    tile.batch = first_ + matrix;
    tile.half = false;
    if (link.kind == LinkKind::kSymmetric || link.kind == LinkKind::kSymmetricMN) {
      Walk<Shape, true>::Order::locate(task, link.m, link.n, static_cast<int>(rank), tile);
    } else {
      Walk<Shape, false>::Order::locate(task, link.m, link.n, static_cast<int>(rank), tile);
    }
    return tile;
  }

  __device__ __forceinline__ Product product() const {
    const ChainLink& link = table_.links[link_];
    return {&table_.buffers[link.a],
            &table_.buffers[link.b],
            optional(link.c),
            &table_.buffers[link.out],
            nullptr,
            link.m,
            link.n,
            link.k,
            link.alpha,
            link.beta,
            link.delta};
  }

  template <class F>
  __device__ __forceinline__ void with_kind(F&& f) const {
    switch (table_.links[link_].kind) {
      case LinkKind::kSymmetric: return f(Kind<Major::kK, Major::kK, true>());
      case LinkKind::kSymmetricMN: return f(Kind<Major::kMN, Major::kMN, true>());
      case LinkKind::kFull: return f(Kind<Major::kK, Major::kK, false>());
      case LinkKind::kFullMN: return f(Kind<Major::kK, Major::kMN, false>());
    }
  }

  __device__ __forceinline__ void wait_for_operands(const TileAt& tile) const {
    const uint32_t needed = table_.links[link_].needed;
    if (needed == 0) return;
    counter_wait(table_.done + tile.entry, needed);
    fence_for_async();
  }

  template <class Epilogue>
  __device__ __forceinline__ void stored(const TileAt& tile, const Epilogue& epilogue) const {
    if (epilogue.complete()) {
      fence_for_async();
      counter_increment(table_.done + tile.entry);
    }
  }

 private:
  __device__ __forceinline__ const CUtensorMap* optional(uint8_t buffer) const {
    return buffer == kNoBuffer ? nullptr : &table_.buffers[buffer];
  }

  const ChainTable& table_;
  int offset_;  // of the task among those of this link in this band
  int clusters_;
  int chain_ = 0, link_, first_ = 0;  // first matrix of the band
};

template <typename Element, class Shape>
__global__ void __launch_bounds__(kThreads, 1) chain_sm90_kernel(const __grid_constant__ ChainTable table) {
  run_persistent<Element, Shape>(
      [&](int rank, int clusters) { return ChainTasks<Shape>(table, rank, clusters); });
}

}  // namespace muon_kernels::sm90
