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

}  // namespace muon_kernels
