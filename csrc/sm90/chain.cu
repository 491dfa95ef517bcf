// Public launcher of chains: walks through all chains at once and puts what can run together into one launch.
#include <cstddef>
#include <utility>
#include <vector>

#include "../api.h"

namespace muon_kernels {
namespace {

MatrixBatch matrices(const ChainItem& item, const ChainOperand& operand, void* workspace) {
  if (operand.buffer < 0) return {nullptr, 0, 0, 1};
  const ChainBuffer& buffer = item.buffers[operand.buffer];
  const MatrixBatch view{static_cast<char*>(workspace) + 2 * buffer.offset, buffer.batch_stride, buffer.row_stride, 1};
  return operand.transposed ? MatrixBatch{view.data, view.batch_stride, view.col_stride, view.row_stride} : view;
}

GemmItem gemm_item(const ChainItem& item, const ChainProduct& p, void* workspace) {
  const auto extents = [&](const ChainOperand& operand) {
    const ChainBuffer& buffer = item.buffers[operand.buffer];
    return operand.transposed ? std::pair(buffer.cols, buffer.rows) : std::pair(buffer.rows, buffer.cols);
  };
  const auto [m, k] = extents(p.a);
  return {item.batch,
          m,
          extents(p.b).second,
          k,
          matrices(item, p.a, workspace),
          // Of two symmetric operands either can be read transposed; with the rows of both the copies are alike.
          matrices(item, {p.b.buffer, p.b.transposed || (p.symmetric && !p.a.transposed)}, workspace),
          matrices(item, p.c, workspace),
          matrices(item, p.out, workspace),
          p.alpha,
          p.beta,
          p.delta};
}

}  // namespace

cudaError_t launch_chains_sm90(const ChainItem* items, int64_t count, DType dtype, void* workspace,
                               cudaStream_t stream) {
  std::vector<size_t> next(count, 0);  // product of each chain
  const auto left = [&](int64_t i) { return items[i].batch == 0 ? 0 : items[i].products.size() - next[i]; };
  for (;;) {
    // The chain with most products left decides which kind comes next.
    int64_t longest = 0;
    for (int64_t i = 1; i < count; ++i) {
      if (left(i) > left(longest)) longest = i;
    }
    if (count == 0 || left(longest) == 0) return cudaSuccess;
    const bool symmetric = items[longest].products[next[longest]].symmetric;
    std::vector<GemmItem> together;
    for (int64_t i = 0; i < count; ++i) {
      if (left(i) == 0 || items[i].products[next[i]].symmetric != symmetric) continue;
      together.push_back(gemm_item(items[i], items[i].products[next[i]], workspace));
      ++next[i];
    }
    const auto launch = symmetric ? launch_symm_gemm_sm90 : launch_gemm_add_sm90;
    const cudaError_t error =
        launch(together.data(), static_cast<int64_t>(together.size()), {dtype, kTileBySizes}, stream);
    if (error != cudaSuccess) return error;
  }
}

}  // namespace muon_kernels
