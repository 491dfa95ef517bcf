// Launches of small_chains_kernel: packs chains into tables of kernel parameters.
#include <algorithm>
#include <utility>

#include "../dependent_launch.cuh"
#include "small_kernel.cuh"
#include "small_launch.h"

namespace muon_kernels::sm90 {
namespace {

constexpr int kAlignment = 1024;  // of the matrices in shared memory
static_assert(kSmallBytes + kAlignment <= 232448);

// Whether the table has room for the chain, which it then has.
bool append(SmallLaunch& launch, const SmallChain& chain) {
  SmallTable& table = launch.table;
  SmallEntry last{};
  if (table.count > 0) last = table.entries[table.count - 1];
  SmallEntry entry{launch.blocks, last.end_store, 0, 0, last.end_product, 0};
  entry.first_store = entry.first_load + static_cast<int>(chain.loads.size());
  entry.end_store = entry.first_store + static_cast<int>(chain.stores.size());
  entry.end_product = entry.first_product + static_cast<int>(chain.products.size());
  if (table.count == kSmallEntries || entry.end_store > kSmallTransfers || entry.end_product > kSmallProducts) {
    return false;
  }
  table.entries[table.count++] = entry;
  std::copy(chain.loads.begin(), chain.loads.end(), table.transfers + entry.first_load);
  std::copy(chain.stores.begin(), chain.stores.end(), table.transfers + entry.first_store);
  std::copy(chain.products.begin(), chain.products.end(), table.products + entry.first_product);
  launch.blocks += static_cast<int>(chain.batch);
  launch.shared_bytes = std::max(launch.shared_bytes, chain.shared_bytes + kAlignment);
  return true;
}

}  // namespace

cudaError_t prepare_small_chains(std::vector<SmallChain> chains, DType dtype, void* workspace,
                                 std::vector<SmallLaunch>& launches) {
  if (chains.empty()) return cudaSuccess;
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16) return cudaErrorInvalidValue;
  const auto kernel = dtype == DType::kFloat16 ? small_chains_kernel<__half> : small_chains_kernel<__nv_bfloat16>;
  // Chains of one launch have the shared memory of the largest; the longest blocks start first.
  std::stable_sort(chains.begin(), chains.end(),
                   [](const SmallChain& x, const SmallChain& y) { return x.shared_bytes > y.shared_bytes; });
  for (const SmallChain& chain : chains) {
    if (!launches.empty() && append(launches.back(), chain)) continue;
    launches.push_back({{workspace}, reinterpret_cast<const void*>(kernel), 0, 0});
    append(launches.back(), chain);
  }
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmallBytes + kAlignment);
}

cudaError_t enqueue(const SmallLaunch& launch, cudaStream_t stream) {
  return launch_dependent(launch.kernel, &launch.table, launch.blocks, kSmallThreads, launch.shared_bytes, stream);
}

}  // namespace muon_kernels::sm90
