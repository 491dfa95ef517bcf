// prologue_normalize: prologue into bfloat16, then normalize to float16 in the same place, in one launch: what is to be
// normalised is still in L2, and memory is written once.
//
// Block b takes chunk b of the list through the prologue and chunk b - lag through normalize. The lag covers the largest
// matrix, so that all chunks of any matrix are begun before the first of them is normalised. The block that ends a matrix's
// prologue adds up its sums, in the order of sums.cuh, and publishes the factor. A matrix is normalised from its end: of one
// that L2 cannot hold, that is what L2 holds.
//
// No block waits for ever: the factor that it waits for is published by a block of smaller index, which the device has
// started before it and which waits in the same way, if at all.
//
// A table holds 1019 dense or 355 strided matrices; longer lists take several launches, each complete in itself.
// Limits: at most 2^30 chunks of 4096 elements a launch; grad, momentum and out must not overlap each other.

#include <algorithm>
#include <cstdint>
#include <cuda/atomic>

#include "block_sum.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "normalize.cuh"
#include "prologue.cuh"
#include "sums.cuh"
#include "table.cuh"
#include "walk.cuh"

namespace muon_kernels {
namespace {

using Raw = __nv_bfloat16;
using Normalised = __half;

// Chunks between the end of a matrix's prologue and its normalize: about as many as an H100 has in work at a time, so that
// blocks find the factor there. 256 were as fast.
constexpr uint32_t kSlack = 512;

// How far a matrix has come; all 0 when a launch begins.
struct Progress {
  uint32_t chunks;  // that are through the prologue
  uint32_t factor;  // its bits, with the sign set, as a factor may be 0
};

// The work of one launch.
struct Work {
  Progress* progress;  // one a matrix
  double* partials;    // one a chunk
  uint32_t chunks;
  uint32_t lag;
};

using Shared = cuda::atomic_ref<uint32_t, cuda::thread_scope_device>;

__device__ float wait_for_factor(Progress& progress) {
  uint32_t bits;
  while ((bits = Shared(progress.factor).load(cuda::memory_order_acquire)) == 0) __nanosleep(100);
  return fabsf(__uint_as_float(bits));
}

__device__ void publish(float factor, Progress& progress) {
  Shared(progress.factor).store(__float_as_uint(factor) | 0x80000000u, cuda::memory_order_release);
}

template <class Table>
__device__ uint32_t chunks_of(const Table& table, int matrix) {
  return static_cast<uint32_t>(table.view(matrix).chunks());
}

template <typename G, typename M, class View>
__global__ void __launch_bounds__(kThreads, kBlocks<G, M, Raw, View>)
    prologue_normalize_kernel(const __grid_constant__ Table<View, NoPayload> table,
                              const __grid_constant__ PrologueArgs prologue, const __grid_constant__ NormalizeArgs norm,
                              const __grid_constant__ Work work) {
  __shared__ float matrix_factor;
  const int begun = table.find(blockIdx.x);
  grid_release_dependents();
  grid_wait_for_dependencies();  // nothing above touches memory that another kernel writes

  bool is_last = false;
  if (blockIdx.x < work.chunks) {
    const View& view = table.view(begun);
    const double sum = block_sum(walk_prologue<G, M, Raw, Use::kOnce>(view, blockIdx.x - table.first_block[begun], prologue));
    if (threadIdx.x == 0) {
      work.partials[blockIdx.x] = sum;
      const uint32_t before = Shared(work.progress[begun].chunks).fetch_add(1, cuda::memory_order_acq_rel);
      is_last = before + 1 == chunks_of(table, begun);
    }
  }

  const bool normalises = blockIdx.x >= work.lag;
  const int ended = normalises ? table.find(blockIdx.x - work.lag) : 0;
  // Another warp than that of thread 0, which is still waiting for its count.
  if (normalises && threadIdx.x == kThreads - 1) matrix_factor = wait_for_factor(work.progress[ended]);
  if (__syncthreads_or(is_last)) {
    const double sumsq = sum_in_order(work.partials + table.first_block[begun], chunks_of(table, begun));
    if (threadIdx.x == 0) publish(factor(sumsq, norm), work.progress[begun]);
  }

  if (normalises) {
    const View& view = table.view(ended);
    const uint32_t from_end = blockIdx.x - work.lag - table.first_block[ended];
    const Normalize<Raw, Normalised, 2, 2> op(matrix_factor, view.data);
    walk_chunk<kChunk / (kThreads * View::kWidth)>(view, chunks_of(table, ended) - 1 - from_end, op);
  }
}

// A memset would wait until the kernel before it has ended, and the launch for the memset.
__global__ void clear_kernel(Progress* progress, uint32_t count) {
  grid_release_dependents();
  grid_wait_for_dependencies();
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i < count) progress[i] = {0, 0};
}

template <class Table>
uint32_t largest_matrix(const Table& table, uint32_t chunks) {
  uint32_t largest = 0;
  for (int t = 0; t < table.count; ++t) {
    const uint32_t end = t + 1 < table.count ? table.first_block[t + 1] : chunks;
    largest = std::max(largest, end - table.first_block[t]);
  }
  return largest;
}

template <typename G, typename M>
cudaError_t launch_typed(const PrologueItem* items, int64_t count, const PrologueArgs& prologue, const NormalizeArgs& norm,
                         cudaStream_t stream) {
  static_assert(kLargestMatrix == Flat<G, M, Raw>::kLongest);  // one view a matrix
  static_assert(sizeof(Progress) == sizeof(double));
  const uint32_t matrices = static_cast<uint32_t>(count);
  Work work{reinterpret_cast<Progress*>(prologue.partials), prologue.partials + matrices, 0, 0};
  const uint32_t clear_blocks = (matrices + kThreads - 1) / kThreads;
  if (const cudaError_t error = launch(clear_kernel, clear_blocks, stream, work.progress, matrices)) return error;

  const auto launch_table = [&](const auto& table, uint32_t chunks) {
    using View = typename std::decay_t<decltype(table)>::ViewType;
    work.chunks = chunks;
    work.lag = std::min(chunks, largest_matrix(table, chunks) + kSlack);
    const cudaError_t error = launch(prologue_normalize_kernel<G, M, View>, chunks + work.lag, stream, table, prologue, norm,
                                     work);
    work.progress += table.count;
    work.partials += chunks;
    return error;
  };
  MultiTensorLaunch<NoPayload, decltype(launch_table), G, M, Raw> launches(launch_table);
  const cudaError_t error = tensors_of<G, M, Raw>(items, count)([&](const auto& matrix) {
    return matrix.visit([&](const auto& view) { return launches.add(view, {}); });
  });
  return error == cudaSuccess ? launches.finish() : error;
}

// Calls f(grad type, momentum type).
template <class F>
cudaError_t with_types(const PrologueArgs& args, F&& f) {
  return with_type(args.grad_dtype, [&](auto g) { return with_type(args.momentum_dtype, [&](auto m) { return f(g, m); }); });
}

}  // namespace

int64_t prologue_normalize_scratch(const PrologueItem* items, int64_t count, const PrologueArgs& prologue) {
  int64_t doubles = count;
  with_types(prologue, [&](auto g, auto m) {
    using G = typename decltype(g)::type;
    using M = typename decltype(m)::type;
    doubles += count_partials<G, M, Raw>(tensors_of<G, M, Raw>(items, count));
    return cudaSuccess;
  });
  return doubles;
}

cudaError_t launch_prologue_normalize(const PrologueItem* items, int64_t count, const PrologueArgs& prologue,
                                      const NormalizeArgs& norm, cudaStream_t stream) {
  const auto too_large = [](const PrologueItem& item) { return item.rows * item.cols > kLargestMatrix; };
  if (count == 0) return cudaSuccess;
  if (std::any_of(items, items + count, too_large)) return cudaErrorInvalidValue;
  return with_types(prologue, [&](auto g, auto m) {
    return launch_typed<typename decltype(g)::type, typename decltype(m)::type>(items, count, prologue, norm, stream);
  });
}

}  // namespace muon_kernels
