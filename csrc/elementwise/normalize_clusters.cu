// normalize without sums: out <- x / max(safety_factor * ||x||_F, eps), for a list of matrices, in one launch.
//
// One thread-block cluster per matrix, which it reads twice: sums of squares in float64 (thread, warp, block, cluster, always
// in one order), the factor, then x again, out of caches, and out. A block is kGroups groups of kThreads threads; every
// group takes chunks of its own. The cluster's blocks, 1 to 16, depend on the matrix's own chunks, never on the list:
// matrices of equal clusters share a launch, dense ones apart from strided ones; a table holds 1359 or 479.
// Larger matrices, and all of them before sm_90, go through sum_squares and normalize.
// Limits: operands must not overlap each other.

#include <cooperative_groups.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "block_sum.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "normalize.cuh"
#include "squares.cuh"
#include "table.cuh"
#include "walk.cuh"

namespace muon_kernels {
namespace {

constexpr int kGroups = 4;           // 1024 threads: few blocks with many loads in flight
constexpr int kLargestCluster = 16;  // more than 8 are not portable: the device is asked
constexpr int kGroupChunks = 3;      // at most for one group: 0.79 million elements in a cluster of 16

template <typename X, typename O, class View>
__global__ void __launch_bounds__(kThreads * kGroups)
    normalize_cluster_kernel(const __grid_constant__ Table<View, NoPayload> table,
                             const __grid_constant__ NormalizeArgs args) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __shared__ double block_sums[kLargestCluster];
  __shared__ float matrix_factor;
  grid_release_dependents();
  const auto cluster = cooperative_groups::this_cluster();
  __cluster_barrier_arrive_relaxed();  // there is nothing yet that others must see
  const View& view = table.view(blockIdx.x / cluster.num_blocks());  // clusters of one launch are alike
  const uint32_t chunks = static_cast<uint32_t>(view.chunks());
  const uint32_t first = cluster.block_rank() * kGroups + threadIdx.y;
  const uint32_t step = cluster.num_blocks() * kGroups;
  grid_wait_for_dependencies();  // nothing above touches memory that another kernel writes

  Squares<X> squares(view.data[0]);
  for (uint32_t chunk = first; chunk < chunks; chunk += step) walk_chunk<2>(view, chunk, squares);
  cluster.barrier_wait();  // shared memory of a block that has not begun must not be written
  const double sum = block_sum<kGroups>(squares.sum());
  const uint32_t thread = threadIdx.y * kThreads + threadIdx.x;
  if (thread < cluster.num_blocks()) *cluster.map_shared_rank(block_sums + cluster.block_rank(), thread) = sum;
  cluster.sync();  // from here on, blocks touch their own memory alone and may end
  if (thread == 0) {
    double sumsq = block_sums[0];
    for (uint32_t block = 1; block < cluster.num_blocks(); ++block) sumsq += block_sums[block];
    matrix_factor = factor(sumsq, args);
  }
  __syncthreads();

  const Normalize<X, O> normalize(matrix_factor, view.data);
  for (uint32_t chunk = first; chunk < chunks; chunk += step) walk_chunk<2>(view, chunk, normalize);
#endif
}

// The largest cluster of the kernel's blocks on the current device; 0 if it was compiled without clusters.
template <class Kernel>
cudaError_t ask_largest_cluster(Kernel* kernel, int* blocks) {
  *blocks = 0;
  cudaFuncAttributes attributes;
  if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel)) return error;
  if (attributes.ptxVersion < 90) return cudaSuccess;
  if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) {
    return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = kLargestCluster;
  config.blockDim = dim3(kThreads, kGroups);
  return cudaOccupancyMaxPotentialClusterSize(blocks, kernel, &config);
}

// Of both kernels; asked once for each device.
template <typename X, typename O>
cudaError_t largest_cluster(int* blocks) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];  // one more than the answer, or 0
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (device < kDevices && (*blocks = known[device] - 1) >= 0) return cudaSuccess;
  int dense = 0, strided = 0;
  if (const cudaError_t error = ask_largest_cluster(normalize_cluster_kernel<X, O, Flat<X, O>>, &dense)) return error;
  if (const cudaError_t error = ask_largest_cluster(normalize_cluster_kernel<X, O, Strided<X, O>>, &strided)) {
    return error;
  }
  *blocks = std::min({dense, strided, kLargestCluster});
  if (device < kDevices) known[device] = *blocks + 1;
  return cudaSuccess;
}

// Blocks of the cluster for each matrix of the item; 0 if they are too large for one.
template <typename X, typename O>
int cluster_size(const NormalizeItem& item, int largest) {
  const int64_t chunks = matrix_of<X, O>(item, 0).chunks();
  if (chunks > int64_t{largest} * kGroups * kGroupChunks) return 0;
  int blocks = 1;
  while (blocks * 2 <= largest && blocks * kGroups < chunks) blocks *= 2;
  return blocks;
}

// Items whose matrices are too large for a cluster, as normalize and as sum_squares take them.
struct LargeItems {
  std::vector<NormalizeItem> items;
  std::vector<SumSquaresItem> xs;
  int64_t matrices = 0;

  int64_t count() const { return static_cast<int64_t>(items.size()); }
};

template <typename X, typename O>
LargeItems large_items(const NormalizeItem* items, int64_t count, int largest) {
  LargeItems large;
  for (const NormalizeItem* item = items; item < items + count; ++item) {
    if (cluster_size<X, O>(*item, largest) > 0) continue;
    large.items.push_back(*item);
    large.xs.push_back({item->batch, item->rows, item->cols,
                        {item->x.data, item->x_batch_stride, item->x.row_stride, item->x.col_stride}});
    large.matrices += item->batch;
  }
  return large;
}

// Scratch memory holds the sums, then the partial ones.
cudaError_t launch_large(const LargeItems& large, NormalizeArgs args, cudaStream_t stream) {
  if (large.matrices == 0) return cudaSuccess;
  if (const cudaError_t error = launch_sum_squares(large.xs.data(), large.count(), args.x_dtype, args.scratch,
                                                   args.scratch + large.matrices, stream)) {
    return error;
  }
  args.sumsq = args.scratch;
  return launch_normalize(large.items.data(), large.count(), args, stream);
}

template <typename X, typename O>
cudaError_t launch_typed(const NormalizeItem* items, int64_t count, const NormalizeArgs& args, cudaStream_t stream) {
  int largest = 0;
  if (const cudaError_t error = largest_cluster<X, O>(&largest)) return error;
  for (int cluster = 1; cluster <= largest; cluster *= 2) {
    const auto launch_table = [&](const auto& table, uint32_t blocks) {
      using View = typename std::decay_t<decltype(table)>::ViewType;
      return launch_clusters(normalize_cluster_kernel<X, O, View>, blocks, cluster, dim3(kThreads, kGroups), stream,
                             table, args);
    };
    MultiTensorLaunch<NoPayload, decltype(launch_table), X, O> matrices(launch_table);
    for (const NormalizeItem* item = items; item < items + count; ++item) {
      if (cluster_size<X, O>(*item, largest) != cluster) continue;
      for (int64_t i = 0; i < item->batch; ++i) {
        const cudaError_t error = matrix_of<X, O>(*item, i).visit(
            [&](const auto& view) { return matrices.add(view, {}, cluster); });
        if (error != cudaSuccess) return error;
      }
    }
    if (const cudaError_t error = matrices.finish()) return error;
  }
  return launch_large(large_items<X, O>(items, count, largest), args, stream);
}

// Calls f(x type, out type).
template <class F>
cudaError_t with_types(const NormalizeArgs& args, F&& f) {
  return with_type(args.x_dtype, [&](auto x) { return with_type(args.out_dtype, [&](auto o) { return f(x, o); }); });
}

}  // namespace

int64_t normalize_scratch(const NormalizeItem* items, int64_t count, const NormalizeArgs& args) {
  int64_t doubles = 0;
  with_types(args, [&](auto x, auto o) {
    using X = typename decltype(x)::type;
    using O = typename decltype(o)::type;
    int largest = 0;
    const cudaError_t error = largest_cluster<X, O>(&largest);  // launch_normalize meets the same error
    const LargeItems large = large_items<X, O>(items, count, largest);
    doubles = large.matrices + sum_squares_partials(large.xs.data(), large.count(), args.x_dtype);
    return error;
  });
  return doubles;
}

cudaError_t launch_normalize_clusters(const NormalizeItem* items, int64_t count, const NormalizeArgs& args,
                                      cudaStream_t stream) {
  return with_types(args, [&](auto x, auto o) {
    return launch_typed<typename decltype(x)::type, typename decltype(o)::type>(items, count, args, stream);
  });
}

}  // namespace muon_kernels
