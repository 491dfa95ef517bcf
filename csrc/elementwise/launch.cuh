// One-dimensional launches of kThreads threads a block that may overlap the end of the kernel before them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../dependent_launch.cuh"
#include "layout.cuh"

namespace muon_kernels {

inline bool launches_overlap() {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major >= 9;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), uint32_t blocks, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute = dependent_launch();
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = kThreads;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = launches_overlap() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// The same in clusters of `cluster` blocks, each of any shape. From sm_90 on.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_clusters(void (*kernel)(Parameters...), uint32_t blocks, uint32_t cluster, dim3 threads,
                            cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attributes[] = {dependent_launch(), {}};
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace muon_kernels
