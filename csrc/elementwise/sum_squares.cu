// sum_squares: the squared Frobenius norm of every matrix of a list, in float64.
//
// One block per chunk, one pass over memory: reads x; a second kernel adds up the chunks of a matrix. A table holds
// 2039 dense or 741 strided matrices; longer lists take several launches.
// Limits: at most 2^31 - 1 chunks of 4096 elements per matrix.

#include <cstdint>

#include "dispatch.cuh"
#include "launch.cuh"
#include "squares.cuh"
#include "sums.cuh"
#include "table.cuh"
#include "walk.cuh"

namespace muon_kernels {
namespace {

template <typename X, class View>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    sum_squares_kernel(const __grid_constant__ Table<View, NoPayload> table, double* partials) {
  const int t = table.find(blockIdx.x);
  const View& view = table.view(t);
  const uint32_t chunk = blockIdx.x - table.first_block[t];
  grid_release_dependents();
  grid_wait_for_dependencies();  // nothing above touches memory that another kernel writes
  Squares<X> op(view.data[0]);
  walk_chunk<2>(view, chunk, op);
  const double sum = block_sum(op.sum());
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// tensors(f) calls f(matrix) for every matrix of every item until one call fails.
template <typename X>
auto tensors_of(const SumSquaresItem* items, int64_t count) {
  return [=](auto&& f) {
    for (const SumSquaresItem* item = items; item < items + count; ++item) {
      for (int64_t i = 0; i < item->batch; ++i) {
        const MatrixView x{static_cast<X*>(item->x.data) + i * item->x.batch_stride, item->x.row_stride,
                           item->x.col_stride};
        if (const cudaError_t error = f(Matrices<X>(item->rows, item->cols, {x}))) return error;
      }
    }
    return cudaSuccess;
  };
}

}  // namespace

int64_t sum_squares_partials(const SumSquaresItem* items, int64_t count, DType x_dtype) {
  int64_t total = 0;
  with_type(x_dtype, [&](auto x) {
    using X = typename decltype(x)::type;
    total = count_partials<X>(tensors_of<X>(items, count));
    return cudaSuccess;
  });
  return total;
}

cudaError_t launch_sum_squares(const SumSquaresItem* items, int64_t count, DType x_dtype, double* sumsq,
                               double* partials, cudaStream_t stream) {
  return with_type(x_dtype, [&](auto x) {
    using X = typename decltype(x)::type;
    const auto launch_table = [&](const auto& table, uint32_t blocks, double* block_sums) {
      using View = typename std::decay_t<decltype(table)>::ViewType;
      return launch(sum_squares_kernel<X, View>, blocks, stream, table, block_sums);
    };
    return launch_summed<X>(tensors_of<X>(items, count), launch_table, partials, sumsq, stream);
  });
}

}  // namespace muon_kernels
