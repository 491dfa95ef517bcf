// Tensor maps: how the copy engine sees a batch of matrices, encoded on the host and passed as kernel parameters.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace muon_kernels::sm90 {

// A batch of matrices of 16-bit elements whose rows are contiguous, and the box that one copy moves: box_rows x 64
// columns, in the 128-byte swizzle. Strides count elements.
struct TensorBox {
  const void* data;
  int64_t batch, rows, cols;
  int64_t batch_stride, row_stride;
  uint32_t box_rows;
};

inline cudaError_t encode_tensor_map(CUtensorMap* map, CUtensorMapDataType type, const TensorBox& box) {
  static void* const encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return found == cudaDriverEntryPointSuccess ? function : nullptr;
  }();
  if (encoder == nullptr) return cudaErrorNotSupported;
  // A stride that is never taken must still be valid.
  const int64_t batch_stride = box.batch > 1 ? box.batch_stride : box.row_stride;
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(box.cols), static_cast<cuuint64_t>(box.rows),
                               static_cast<cuuint64_t>(box.batch)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(box.row_stride) * 2,
                                 static_cast<cuuint64_t>(batch_stride) * 2};  // in bytes
  const cuuint32_t extents[3] = {64, box.box_rows, 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encoder)(
      map, type, 3, const_cast<void*>(box.data), sizes, strides, extents, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace muon_kernels::sm90
