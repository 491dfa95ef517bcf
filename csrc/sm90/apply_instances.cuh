// Definition of prepare_apply_group, as instances.cuh's of prepare_group.
#pragma once

#include "instances.cuh"

namespace muon_kernels::sm90 {

template <typename Param, Major kMajorB>
cudaError_t prepare_apply_majors(const GemmItem* items, int count, GemmLaunch& launch) {
  const int tile = choose_gemm_apply_tile(items, count, multiprocessors());
  cudaError_t result = cudaErrorInvalidValue;
  for_each_apply_shape([&](int index, auto shape) {
    using Shape = decltype(shape);
    if (index != tile) return;
    result = prepare_kernel<__half, false, Shape>(gemm_apply_sm90_kernel<__half, Param, Major::kK, kMajorB, Shape>,
                                                  items, count, launch);
  });
  return result;
}

template <typename Param>
cudaError_t prepare_apply_group(const GemmItem* items, int count, GemmLaunch& launch) {
  if (items[0].a.col_stride != 1) return cudaErrorInvalidValue;
  return (items[0].b.row_stride == 1 ? prepare_apply_majors<Param, Major::kK>
                                     : prepare_apply_majors<Param, Major::kMN>)(items, count, launch);
}

}  // namespace muon_kernels::sm90
