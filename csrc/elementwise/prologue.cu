// prologue: g = grad / grad_scale; momentum update; Nesterov step; rounding to the output dtype; sum of squares.
//
// One block per chunk, one pass over memory: reads grad and momentum, writes momentum and out. All arithmetic is fp32;
// squares are summed in float64 over the rounded outputs: thread, then warp, then block, then (second kernel) chunks of a
// tensor, always in the same order. A table holds 1019 dense or 355 strided tensors; longer lists take several launches.
// Limits: at most 2^31 - 1 chunks of 4096 elements per tensor; operands must not overlap each other.

#include <cstdint>

#include "dispatch.cuh"
#include "launch.cuh"
#include "prologue.cuh"
#include "sums.cuh"
#include "table.cuh"

namespace muon_kernels {
namespace {

template <typename G, typename M, typename O, class View>
__global__ void __launch_bounds__(kThreads, kBlocks<G, M, O, View>)
    prologue_kernel(const __grid_constant__ Table<View, NoPayload> table, const __grid_constant__ PrologueArgs args,
                    double* partials) {
  const int t = table.find(blockIdx.x);
  const View& view = table.view(t);
  const uint32_t chunk = blockIdx.x - table.first_block[t];
  grid_release_dependents();
  grid_wait_for_dependencies();  // nothing above touches memory that another kernel writes
  const double sum = block_sum(walk_prologue<G, M, O, Use::kAgain>(view, chunk, args));
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

template <typename G, typename M, typename O>
cudaError_t launch_typed(const PrologueItem* items, int64_t count, const PrologueArgs& args, cudaStream_t stream) {
  const auto launch_table = [&](const auto& table, uint32_t blocks, double* partials) {
    using View = typename std::decay_t<decltype(table)>::ViewType;
    return launch(prologue_kernel<G, M, O, View>, blocks, stream, table, args, partials);
  };
  return launch_summed<G, M, O>(tensors_of<G, M, O>(items, count), launch_table, args.partials, args.sumsq, stream);
}

// Calls f(grad type, momentum type, out type).
template <class F>
cudaError_t with_types(const PrologueArgs& args, F&& f) {
  return with_type(args.grad_dtype, [&](auto g) {
    return with_type(args.momentum_dtype, [&](auto m) {
      return with_type(args.out_dtype, [&](auto o) { return f(g, m, o); });
    });
  });
}

}  // namespace

int64_t prologue_partials(const PrologueItem* items, int64_t count, const PrologueArgs& args) {
  int64_t total = 0;
  with_types(args, [&](auto g, auto m, auto o) {
    using G = typename decltype(g)::type;
    using M = typename decltype(m)::type;
    using O = typename decltype(o)::type;
    total = count_partials<G, M, O>(tensors_of<G, M, O>(items, count));
    return cudaSuccess;
  });
  return total;
}

cudaError_t launch_prologue(const PrologueItem* items, int64_t count, const PrologueArgs& args, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return with_types(args, [&](auto g, auto m, auto o) {
    return launch_typed<typename decltype(g)::type, typename decltype(m)::type, typename decltype(o)::type>(
        items, count, args, stream);
  });
}

}  // namespace muon_kernels
