// prologue: g = grad / grad_scale; momentum update; Nesterov step; rounding to the output dtype; sum of squares.
//
// One block per chunk, one pass over memory: reads grad and momentum, writes momentum and out. All arithmetic is fp32;
// squares are summed in float64 over the rounded outputs: thread, then warp, then block, then (second kernel) chunks of a
// tensor, always in the same order. A table holds 1019 dense or 355 strided tensors; longer lists take several launches.
// Limits: at most 2^31 - 1 chunks of 4096 elements per tensor; operands must not overlap each other.

#include <cstdint>

#include "dispatch.cuh"
#include "launch.cuh"
#include "pack.cuh"
#include "sums.cuh"
#include "table.cuh"
#include "walk.cuh"

namespace muon_kernels {
namespace {

// torch.lerp's formula: both branches are exact at their end of the interval.
__device__ float lerp(float a, float b, float weight) {
  return weight < 0.5f ? a + weight * (b - a) : b - (b - a) * (1.0f - weight);
}

template <typename G, typename M, typename O>
class Prologue {
 public:
  template <int W>
  struct Input {
    Pack<G, W> grad;
    Pack<M, W> momentum;
  };

  __device__ Prologue(const PrologueArgs& args, void* const (&data)[3])
      : args_(args),
        data_(data),
        scale_(args.grad_scale ? *args.grad_scale : 1.0f),
        skip_(args.found_inf && *args.found_inf != 0.0f) {}

  template <int W, class Span>
  __device__ Input<W> load(const Span& span) const {
    return {muon_kernels::load<G, W, 0>(data_[0], span), muon_kernels::load<M, W, 1>(data_[1], span)};
  }

  template <int W, class Span>
  __device__ void finish(const Span& span, Input<W>& input) {
    Pack<O, W> out;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      float g = to_float(input.grad.value[i]);
      float m = to_float(input.momentum.value[i]);
      if (args_.grad_scale) g = g / scale_;
      if (args_.maximize) g = -g;
      m = args_.ema ? lerp(m, g, args_.one_minus_momentum) : args_.momentum * m + g;
      const M stored = from_float<M>(m);
      input.momentum.value[i] = stored;
      m = to_float(stored);
      float u = m;
      if (args_.nesterov) u = args_.ema ? lerp(g, m, args_.momentum) : g + args_.momentum * m;
      out.value[i] = from_float<O>(skip_ ? 0.0f : u);
      const double square = to_float(out.value[i]);
      if (span.exists) sumsq_ += square * square;
    }
    if (!skip_) store<M, W, 1>(data_[1], span, input.momentum);
    store<O, W, 2>(data_[2], span, out);
  }

  __device__ double sumsq() const { return sumsq_; }

 private:
  const PrologueArgs& args_;
  void* const (&data_)[3];
  const float scale_;
  const bool skip_;
  double sumsq_ = 0.0;
};

// Operands of 16 bits throughout: less in flight a thread, and on Hopper more blocks. 1000 tensors of 64 MiB in all: 2 % (and
// 5 % slower in fp32); bench/NOTES.md.
template <typename G, typename M, typename O>
constexpr bool kNarrow = sizeof(G) == 2 && sizeof(M) == 2 && sizeof(O) == 2;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
constexpr int kNarrowBlocks = 6;
#else
constexpr int kNarrowBlocks = kMinBlocks;  // six make ptxas spill for other architectures
#endif

template <typename G, typename M, typename O, class View>
constexpr int kBlocks = kNarrow<G, M, O> && std::is_same_v<View, Flat<G, M, O>> ? kNarrowBlocks : kMinBlocks;

template <typename G, typename M, typename O, class View>
__global__ void __launch_bounds__(kThreads, kBlocks<G, M, O, View>)
    prologue_kernel(const __grid_constant__ Table<View, NoPayload> table, const __grid_constant__ PrologueArgs args,
                    double* partials) {
  const int t = table.find(blockIdx.x);
  const View& view = table.view(t);
  const uint32_t chunk = blockIdx.x - table.first_block[t];
  grid_release_dependents();
  grid_wait_for_dependencies();  // nothing above touches memory that another kernel writes
  Prologue<G, M, O> op(args, view.data);
  walk_chunk<kNarrow<G, M, O> ? 1 : 2>(view, chunk, op);
  const double sum = block_sum(op.sumsq());
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// tensors(f) calls f(matrices) for every item until one call fails.
template <typename G, typename M, typename O>
auto tensors_of(const PrologueItem* items, int64_t count) {
  return [=](auto&& f) {
    for (const PrologueItem* item = items; item < items + count; ++item) {
      const Matrices<G, M, O> matrices(item->rows, item->cols, {item->grad, item->momentum, item->out});
      if (const cudaError_t error = f(matrices)) return error;
    }
    return cudaSuccess;
  };
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
