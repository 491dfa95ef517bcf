// Chains of small matrices on the host: planned for one block, and launches of them as values (launch.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "../api.h"
#include "small_problem.h"

namespace muon_kernels::sm90 {

inline constexpr int kSmallSide = 128;          // the smaller side of any matrix
inline constexpr int kSmallBytes = 225 * 1024;  // of all matrices in a block's shared memory

struct SmallChain {
  int64_t batch;
  int shared_bytes;
  std::vector<SmallTransfer> loads, stores;
  std::vector<SmallProduct> products;
};

// The chain as a program for one block, or none if it is not small. A function of the chain only.
std::optional<SmallChain> plan_small_chain(const ChainItem& item);

// Everything but the stream. Valid on the device that was current when it was prepared.
struct SmallLaunch {
  SmallTable table;
  const void* kernel;
  int blocks;
  int shared_bytes;
};

// Appends the launches of these chains. `dtype`: bfloat16 or float16.
cudaError_t prepare_small_chains(std::vector<SmallChain> chains, DType dtype, void* workspace,
                                 std::vector<SmallLaunch>& launches);

cudaError_t enqueue(const SmallLaunch& launch, cudaStream_t stream);

}  // namespace muon_kernels::sm90
