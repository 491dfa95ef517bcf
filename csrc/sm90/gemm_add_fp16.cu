// The instances of gemm_sm90_kernel for gemm_add in fp16.
#include "instances.cuh"

namespace muon_kernels::sm90 {

template cudaError_t prepare_group<__half, false>(const GemmItem*, int, int, GemmLaunch&);

}  // namespace muon_kernels::sm90
