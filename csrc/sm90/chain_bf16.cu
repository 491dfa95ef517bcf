// The instances of chain_sm90_kernel in bf16.
#include "chain_instances.cuh"

namespace muon_kernels::sm90 {

template cudaError_t launch_chain_table<__nv_bfloat16>(ChainTable&, int, cudaStream_t);

}  // namespace muon_kernels::sm90
