// normalize: out <- x / max(safety_factor * sqrt(sumsq), eps), for a list of matrices, each with its own sum of squares.
//
// One block per chunk, one pass over memory: reads x, writes out. A table holds 1019 dense or 453 strided matrices; longer
// lists take several launches. Without sums: normalize_clusters.cu.
// Limits: at most 2^31 - 1 chunks of 4096 elements per matrix; operands must not overlap each other.

#include <cstdint>

#include "dispatch.cuh"
#include "launch.cuh"
#include "normalize.cuh"
#include "table.cuh"
#include "walk.cuh"

namespace muon_kernels {
namespace {

// Payload: the matrix's index in the list.
template <typename X, typename O, class View>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    normalize_kernel(const __grid_constant__ Table<View, uint32_t> table, const __grid_constant__ NormalizeArgs args) {
  const int t = table.find(blockIdx.x);
  const View& view = table.view(t);
  const uint32_t chunk = blockIdx.x - table.first_block[t];
  grid_release_dependents();
  grid_wait_for_dependencies();  // nothing above touches memory that another kernel writes
  const Normalize<X, O> op(factor(args.sumsq[table.payload[t]], args), view.data);
  walk_chunk<2>(view, chunk, op);
}

template <typename X, typename O>
cudaError_t launch_typed(const NormalizeItem* items, int64_t count, const NormalizeArgs& args, cudaStream_t stream) {
  const auto launch_table = [&](const auto& table, uint32_t blocks) {
    return launch(normalize_kernel<X, O, typename std::decay_t<decltype(table)>::ViewType>, blocks, stream, table, args);
  };
  MultiTensorLaunch<uint32_t, decltype(launch_table), X, O> tensors(launch_table);
  uint32_t matrix = 0;
  for (const NormalizeItem* item = items; item < items + count; ++item) {
    for (int64_t i = 0; i < item->batch; ++i, ++matrix) {
      const Matrices<X, O> matrices = matrix_of<X, O>(*item, i);
      const cudaError_t error = matrices.visit([&](const auto& view) { return tensors.add(view, matrix); });
      if (error != cudaSuccess) return error;
    }
  }
  return tensors.finish();
}

}  // namespace

cudaError_t launch_normalize(const NormalizeItem* items, int64_t count, const NormalizeArgs& args,
                             cudaStream_t stream) {
  if (!args.sumsq) return launch_normalize_clusters(items, count, args, stream);
  return with_type(args.x_dtype, [&](auto x) {
    return with_type(args.out_dtype, [&](auto o) {
      return launch_typed<typename decltype(x)::type, typename decltype(o)::type>(items, count, args, stream);
    });
  });
}

}  // namespace muon_kernels
