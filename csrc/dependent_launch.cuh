// Programmatic dependent launch: a kernel starts its blocks while the one before it in the stream still ends, and waits
// on the device before it touches memory that the other writes. On devices before sm_90 it is an ordinary launch.
#pragma once

#include <cuda_runtime_api.h>

namespace muon_kernels {

// Lets the next kernel in the stream start its blocks where there is room.
__device__ __forceinline__ void grid_release_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Returns once everything that earlier kernels in the stream wrote is visible. A kernel launched the ordinary way need
// not wait.
__device__ __forceinline__ void grid_wait_for_dependencies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The launch attribute. Every kernel that is launched with it calls both functions above.
inline cudaLaunchAttribute dependent_launch() {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

// A one-dimensional launch with it of a kernel whose only parameter is what `parameter` points to.
inline cudaError_t launch_dependent(const void* kernel, const void* parameter, int blocks, int threads, int shared_bytes,
                                    cudaStream_t stream) {
  cudaLaunchAttribute attribute = dependent_launch();
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  void* arguments[] = {const_cast<void*>(parameter)};
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

}  // namespace muon_kernels
