// Public launcher of chains: writes them into tables for chain_sm90_kernel, or launches every product by itself where a
// single matrix fills the device.
#include <algorithm>
#include <utility>

#include "../api.h"
#include "launch.cuh"
#include "shapes.cuh"
#include "tensor_map.h"
#include "walk.cuh"

namespace muon_kernels {
namespace {

using namespace sm90;

constexpr int kPair = 1, kSmall = 4, kSquare = 5;  // indices of shapes.cuh

char* address(const ChainArgs& args, const ChainBuffer& buffer) {
  return static_cast<char*>(args.workspace) + 2 * buffer.offset;
}

// What the tensor cores want: A K-major, out as it lies in memory; a product of symmetric matrices can have its B
// transposed.
ChainProduct oriented(ChainProduct p) {
  if (p.symmetric) {
    if (!p.a.transposed) p.b.transposed = true;
  } else if (p.out.transposed) {
    std::swap(p.a, p.b);
    for (ChainOperand* operand : {&p.a, &p.b, &p.c, &p.out}) operand->transposed = !operand->transposed;
  }
  return p;
}

struct Sizes {
  int64_t m, n, k;
};

Sizes sizes_of(const ChainItem& item, const ChainProduct& p) {
  const ChainBuffer &a = item.buffers[p.a.buffer], &out = item.buffers[p.out.buffer];
  return {out.rows, out.cols, p.a.transposed ? a.rows : a.cols};
}

// ---- one launch for many products --------------------------------------------------------------------------------------

class TableWriter {
 public:
  TableWriter(const ChainArgs& args, int tile, cudaStream_t stream) : args_(args), tile_(tile), stream_(stream) {
    table_.count = 0;
    table_.done = args.done;
  }

  cudaError_t add(const ChainItem& item) {
    if (buffers_ + item.buffers.size() > kMaxBuffers || links_ + item.products.size() > kMaxLinks ||
        table_.count == kMaxChains) {
      if (const cudaError_t error = flush()) return error;
    }
    if (item.buffers.size() > kMaxBuffers || item.products.size() > kMaxLinks) return cudaErrorInvalidValue;
    table_.chains[table_.count++] = {static_cast<int>(item.batch), args_.band, links_,
                                     static_cast<int>(item.products.size()), matrices_};
    matrices_ += static_cast<int>(item.batch);
    const auto type = args_.dtype == DType::kFloat16 ? tensor_map_type<__half>() : tensor_map_type<__nv_bfloat16>();
    for (const ChainProduct& product : item.products) {
      const ChainProduct p = oriented(product);
      if (!p.symmetric && p.a.transposed) return cudaErrorInvalidValue;
      const Sizes sizes = sizes_of(item, p);
      ChainLink& link = table_.links[links_++];
      link.a = index(p.a.buffer);
      link.b = index(p.b.buffer);
      link.c = index(p.c.buffer);
      link.out = index(p.out.buffer);
      link.kind = p.symmetric ? (p.a.transposed ? LinkKind::kSymmetricMN : LinkKind::kSymmetric)
                              : (p.b.transposed ? LinkKind::kFull : LinkKind::kFullMN);
      link.m = static_cast<int>(sizes.m);
      link.n = static_cast<int>(sizes.n);
      link.k = static_cast<int>(sizes.k);
      link.alpha = p.alpha;
      link.beta = p.beta;
      link.delta = p.delta;
      if (p.beta == 0.0f) link.c = kNoBuffer;
    }
    for (const ChainBuffer& buffer : item.buffers) {
      const TensorBox box{address(args_, buffer), item.batch,        buffer.rows, buffer.cols,
                          buffer.batch_stride,    buffer.row_stride, kBox};
      if (const cudaError_t error = encode_tensor_map(&table_.buffers[buffers_++], type, box)) return error;
    }
    return cudaSuccess;
  }

  cudaError_t flush() {
    if (table_.count == 0) return cudaSuccess;
    if (const cudaError_t error = cudaMemsetAsync(table_.done, 0, matrices_ * sizeof(uint32_t), stream_)) return error;
    const auto launch =
        args_.dtype == DType::kFloat16 ? launch_chain_table<__half> : launch_chain_table<__nv_bfloat16>;
    const cudaError_t error = launch(table_, tile_, stream_);
    table_.done += matrices_;
    table_.count = buffers_ = links_ = matrices_ = 0;
    return error;
  }

  int64_t matrices() const { return table_.done + matrices_ - args_.done; }

 private:
  uint8_t index(int buffer) const { return buffer < 0 ? kNoBuffer : static_cast<uint8_t>(buffers_ + buffer); }

  const ChainArgs& args_;
  int tile_;
  cudaStream_t stream_;
  ChainTable table_;
  int buffers_ = 0, links_ = 0, matrices_ = 0;
};

// ---- one launch a product ----------------------------------------------------------------------------------------------

cudaError_t launch_separately(const ChainItem& item, const ChainArgs& args, cudaStream_t stream) {
  const auto matrices = [&](const ChainOperand& operand) -> MatrixBatch {
    if (operand.buffer < 0) return {};
    const ChainBuffer& buffer = item.buffers[operand.buffer];
    MatrixBatch view{address(args, buffer), buffer.batch_stride, buffer.row_stride, 1};
    if (operand.transposed) std::swap(view.row_stride, view.col_stride);
    return view;
  };
  for (const ChainProduct& product : item.products) {
    const ChainProduct p = oriented(product);
    const Sizes sizes = sizes_of(item, p);
    GemmItem gemm{item.batch,    sizes.m,         sizes.n, sizes.k, matrices(p.a), matrices(p.b), matrices(p.c),
                  matrices(p.out), nullptr};
    gemm.c.row_stride = std::max<int64_t>(gemm.c.row_stride, gemm.c.col_stride);  // symmetric, or oriented like out
    gemm.c.col_stride = 1;
    const GemmArgs gemm_args{args.dtype, p.alpha, p.beta, p.delta, -1};
    const auto launch = p.symmetric ? launch_symm_gemm_sm90 : launch_gemm_add_sm90;
    if (const cudaError_t error = launch(&gemm, 1, gemm_args, stream)) return error;
  }
  return cudaSuccess;
}

int choose_tile(const ChainItem& item) {
  int64_t side = INT64_MAX;
  for (const ChainBuffer& buffer : item.buffers) side = std::min({side, buffer.rows, buffer.cols});
  const int64_t tiles = (side + 127) / 128;
  const int64_t pairs = item.batch * (tiles * (tiles + 1) / 2 + 1) / 2;
  if (tiles == 1) return kSquare;
  if (pairs >= multiprocessors()) return kPair;
  return tiles <= 8 ? kSmall : kSeparateLaunches;
}

}  // namespace

cudaError_t launch_chains_sm90(const ChainItem* items, int64_t count, const ChainArgs& args, cudaStream_t stream) {
  if (args.dtype != DType::kBFloat16 && args.dtype != DType::kFloat16) return cudaErrorInvalidValue;
  ChainArgs rest = args;
  for (const int tile : {kPair, kSquare, kSmall, kSeparateLaunches}) {
    TableWriter table(rest, tile, stream);
    for (const ChainItem* item = items; item < items + count; ++item) {
      if (item->batch == 0 || (args.tile == -1 ? choose_tile(*item) : args.tile) != tile) continue;
      const cudaError_t error = tile == kSeparateLaunches ? launch_separately(*item, args, stream) : table.add(*item);
      if (error != cudaSuccess) return error;
    }
    if (const cudaError_t error = table.flush()) return error;
    rest.done += table.matrices();
  }
  return cudaSuccess;
}

}  // namespace muon_kernels
