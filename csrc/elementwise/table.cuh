// The list of tensors of one launch, passed by value as a kernel parameter, and the cutting of a list into launches.
//
// By value, because a launch is then complete in itself: nothing is copied to the device beforehand, and a captured
// launch replays without the host. Parameters may take 32764 bytes (CUDA 12.1, sm_70 and later).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "matrices.cuh"

#if CUDART_VERSION < 12010
#error "muon_kernels needs CUDA 12.1 or later: kernel parameters above 4 KiB"
#endif

namespace muon_kernels {

constexpr int kTableBytes = 32764 - 128;  // 128 bytes are left for the scalar arguments of the op

struct NoPayload {};

// Payload: what the op needs to know of a tensor beside its layout.
template <class View, typename Payload>
struct Table {
  static constexpr bool kEmpty = std::is_empty_v<Payload>;
  static constexpr int kCapacity =
      (kTableBytes - 16) / (sizeof(typename View::Packed) + (kEmpty ? 0 : sizeof(Payload)) + sizeof(uint32_t));

  typename View::Packed packed[kCapacity];
  Payload payload[kEmpty ? 1 : kCapacity];
  uint32_t first_block[kCapacity];  // ascending: tensor t owns blocks first_block[t] .. first_block[t + 1] - 1
  int count;

  using ViewType = View;
  __device__ decltype(auto) view(int tensor) const { return View::of(packed[tensor]); }

  __device__ int find(uint32_t block) const {
    int low = 0;
    int high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first_block[middle] <= block ? low : high) = middle;
    }
    return low;
  }
};

// Collects tensors and launches when a table is full, and at the end: dense tensors apart from strided ones, whose
// entries are larger. Launch is called as launch(table, blocks) and returns cudaError_t.
template <typename Payload, class Launch, typename... Ts>
class MultiTensorLaunch {
 public:
  explicit MultiTensorLaunch(Launch launch) : launch_(launch) {}

  // As one block a chunk.
  template <class View>
  cudaError_t add(const View& view, const Payload& payload) {
    return add(view, payload, view.chunks());
  }

  cudaError_t add(const Flat<Ts...>& view, const Payload& payload, int64_t blocks) {
    return add_to(flat_, view, payload, blocks);
  }
  cudaError_t add(const Strided<Ts...>& view, const Payload& payload, int64_t blocks) {
    return add_to(strided_, view, payload, blocks);
  }

  cudaError_t finish() {
    const cudaError_t error = flush(flat_);
    return error == cudaSuccess ? flush(strided_) : error;
  }

 private:
  static constexpr int64_t kMaxBlocks = INT32_MAX;

  template <class View>
  struct Pending {
    Pending() { table.count = 0; }

    int64_t blocks = 0;
    Table<View, Payload> table;
  };

  template <class View>
  cudaError_t add_to(Pending<View>& pending, const View& view, const Payload& payload, int64_t blocks) {
    if (blocks == 0) return cudaSuccess;
    if (blocks > kMaxBlocks) return cudaErrorInvalidValue;
    Table<View, Payload>& table = pending.table;
    if (table.count == table.kCapacity || pending.blocks + blocks > kMaxBlocks) {
      if (const cudaError_t error = flush(pending); error != cudaSuccess) return error;
    }
    table.packed[table.count] = view.packed();
    if (!table.kEmpty) table.payload[table.count] = payload;
    table.first_block[table.count] = static_cast<uint32_t>(pending.blocks);
    ++table.count;
    pending.blocks += blocks;
    return cudaSuccess;
  }

  template <class View>
  cudaError_t flush(Pending<View>& pending) {
    if (pending.table.count == 0) return cudaSuccess;
    const cudaError_t error = launch_(pending.table, static_cast<uint32_t>(pending.blocks));
    pending.table.count = 0;
    pending.blocks = 0;
    return error;
  }

  Launch launch_;
  Pending<Flat<Ts...>> flat_;
  Pending<Strided<Ts...>> strided_;
};

}  // namespace muon_kernels
