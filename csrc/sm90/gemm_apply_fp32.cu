// Instances of gemm_apply_sm90_kernel for float32 parameters.
#include "apply_instances.cuh"

namespace muon_kernels::sm90 {

template cudaError_t prepare_apply_group<float>(const GemmItem*, int, GemmLaunch&);

}  // namespace muon_kernels::sm90
