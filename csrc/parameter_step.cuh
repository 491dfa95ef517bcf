// The last arithmetic of an optimizer step, p <- p (1 - lr weight_decay) - lr scale update, for every kernel that writes
// parameters: they round alike.
#pragma once

#include "api.h"

namespace muon_kernels {

__device__ inline double learning_rate(const ApplyArgs& args) {
  if (!args.lr_device) return args.lr;
  return args.lr_device_float64 ? *static_cast<const double*>(args.lr_device)
                                : static_cast<double>(*static_cast<const float*>(args.lr_device));
}

// The device scalars of ApplyArgs, read once by each thread.
struct ParameterStep {
  double lr;
  float decay;  // 1 - lr weight_decay, rounded once
  bool skip;    // nothing is to be written

  __device__ explicit ParameterStep(const ApplyArgs& args)
      : lr(learning_rate(args)),
        decay(static_cast<float>(1.0 - lr * args.weight_decay)),
        skip(args.found_inf && *args.found_inf != 0.0f) {}

  __device__ float step(double scale) const { return static_cast<float>(lr * scale); }
};

__device__ __forceinline__ float stepped(float param, float decay, float step, float update) {
  return __fmaf_rn(-step, update, __fmul_rn(param, decay));
}

}  // namespace muon_kernels
