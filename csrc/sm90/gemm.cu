// Public launchers of the products: orients and sorts a problem list, cuts it into launches and dispatches on dtype.
#include <algorithm>
#include <iterator>
#include <vector>

#include "../api.h"
#include "../dependent_launch.cuh"
#include "launch.cuh"
#include "orient.h"
#include "tile.cuh"

namespace muon_kernels {
namespace {

using sm90::kMaxEntries;
using sm90::majors;

template <bool kSymmetric>
cudaError_t prepare(const GemmItem* items, int64_t count, const GemmArgs& args,
                    std::vector<sm90::GemmLaunch>& launches) {
  if (args.dtype != DType::kBFloat16 && args.dtype != DType::kFloat16) return cudaErrorInvalidValue;
  std::vector<GemmItem> list;
  list.reserve(count);
  std::transform(items, items + count, std::back_inserter(list), sm90::oriented<kSymmetric>);
  list.erase(std::remove_if(list.begin(), list.end(), [](const GemmItem& i) { return i.batch * i.m * i.n == 0; }),
             list.end());
  // One launch has one pair of majors; long tiles first, so that short ones fill the end.
  std::stable_sort(list.begin(), list.end(), [](const GemmItem& x, const GemmItem& y) {
    return majors(x) != majors(y) ? majors(x) < majors(y) : x.k > y.k;
  });
  const auto prepare_group = args.dtype == DType::kFloat16 ? sm90::prepare_group<__half, kSymmetric>
                                                           : sm90::prepare_group<__nv_bfloat16, kSymmetric>;
  for (size_t first = 0, last; first < list.size(); first = last) {
    last = first + 1;
    while (last < list.size() && last - first < kMaxEntries && majors(list[last]) == majors(list[first])) ++last;
    const int size = static_cast<int>(last - first);
    launches.emplace_back();
    if (const cudaError_t error = prepare_group(&list[first], size, args.tile, launches.back())) return error;
  }
  return cudaSuccess;
}

cudaError_t launch(bool symmetric, const GemmItem* items, int64_t count, const GemmArgs& args, cudaStream_t stream) {
  std::vector<sm90::GemmLaunch> launches;
  if (const cudaError_t error = sm90::prepare_gemms(symmetric, items, count, args, launches)) return error;
  for (const sm90::GemmLaunch& one : launches) {
    if (const cudaError_t error = sm90::enqueue(one, /*counter=*/nullptr, stream)) return error;
  }
  return cudaSuccess;
}

}  // namespace

namespace sm90 {

cudaError_t prepare_gemms(bool symmetric, const GemmItem* items, int64_t count, const GemmArgs& args,
                          std::vector<GemmLaunch>& launches) {
  return (symmetric ? prepare<true> : prepare<false>)(items, count, args, launches);
}

namespace {

// `parameter`: the kernel's second, after the table.
cudaError_t launch_kernel(const GemmLaunch& launch, const void* parameter, cudaStream_t stream, bool dependent = true) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(launch.cluster), 1, 1};
  attributes[1] = dependent_launch();
  cudaLaunchConfig_t config = {};
  config.gridDim = launch.blocks;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = dependent ? 2 : 1;
  void* arguments[] = {const_cast<GemmTable*>(&launch.table), const_cast<void*>(parameter)};
  return cudaLaunchKernelExC(&config, launch.kernel, arguments);
}

}  // namespace

cudaError_t enqueue(const GemmLaunch& launch, int* counter, cudaStream_t stream, bool dependent) {
  return launch_kernel(launch, &counter, stream, dependent);
}

cudaError_t enqueue(const GemmLaunch& launch, const ApplyTargets& targets, cudaStream_t stream) {
  return launch_kernel(launch, &targets, stream);
}

}  // namespace sm90

cudaError_t launch_symm_gemm_sm90(const GemmItem* items, int64_t count, const GemmArgs& args, cudaStream_t stream) {
  return launch(true, items, count, args, stream);
}

cudaError_t launch_gemm_add_sm90(const GemmItem* items, int64_t count, const GemmArgs& args, cudaStream_t stream) {
  return launch(false, items, count, args, stream);
}

}  // namespace muon_kernels
