// The whole C++ surface of muon_kernels: plain structs of pointers, shapes and strides, and the launchers that take them.
//
// A launcher checks what it can check on the host, enqueues on the stream and returns; it never synchronises, allocates
// or keeps a pointer, so that every launcher can be captured in a CUDA graph. Tables of tensors travel by value as
// kernel parameters. Strides count elements.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

namespace muon_kernels {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// One operand of an elementwise op, seen as a matrix.
struct MatrixView {
  void* data;
  int64_t row_stride;
  int64_t col_stride;
};

// ---- prologue: momentum update, Nesterov step, cast, and sum of squares, in one pass ----------------------------------

struct PrologueItem {
  int64_t rows;
  int64_t cols;
  MatrixView grad;      // read only
  MatrixView momentum;  // updated
  MatrixView out;       // written
};

struct PrologueArgs {
  DType grad_dtype;
  DType momentum_dtype;
  DType out_dtype;
  float momentum;
  float one_minus_momentum;  // rounded once from double, as torch.lerp rounds its weight
  bool nesterov;
  bool ema;
  bool maximize;
  const float* grad_scale;  // device scalar, or null
  const float* found_inf;   // device scalar, or null
  double* sumsq;            // one per item
  double* partials;         // scratch of prologue_partials() doubles
};

// Number of doubles that `partials` must hold for these items.
int64_t prologue_partials(const PrologueItem* items, int64_t count, const PrologueArgs& args);

cudaError_t launch_prologue(const PrologueItem* items, int64_t count, const PrologueArgs& args, cudaStream_t stream);

// ---- apply: p <- p * (1 - lr * weight_decay) - lr * scale * update -----------------------------------------------------

struct ApplyItem {
  int64_t rows;
  int64_t cols;
  MatrixView param;   // updated
  MatrixView update;  // read only
  double scale;
};

struct ApplyArgs {
  DType param_dtype;
  DType update_dtype;
  double weight_decay;
  double lr;               // used when lr_device is null
  const void* lr_device;   // device scalar, or null
  bool lr_device_float64;  // lr_device points to a double, else to a float
  const float* found_inf;  // device scalar, or null
};

cudaError_t launch_apply(const ApplyItem* items, int64_t count, const ApplyArgs& args, cudaStream_t stream);

}  // namespace muon_kernels
