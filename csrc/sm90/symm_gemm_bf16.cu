// The instances of gemm_sm90_kernel for symm_gemm in bf16.
#include "instances.cuh"

namespace muon_kernels::sm90 {

template cudaError_t prepare_group<__nv_bfloat16, true>(const GemmItem*, int, int, GemmLaunch&);

}  // namespace muon_kernels::sm90
