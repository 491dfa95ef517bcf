// Chains of products. Small ones run whole, in launches of their own; of the others this walks through all at once and
// puts what can run together into one launch.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "../api.h"
#include "gram_norms.h"
#include "launch.cuh"
#include "orient.h"
#include "replay.h"
#include "small_launch.h"

namespace muon_kernels {
namespace {

// Shorter sequences are launched one by one: a graph saves the host all launches but about two, and costs the device the
// overlap of its first kernel, and of the one behind it, with what is before them.
constexpr size_t kFewestReplayed = 8;

// Where the last buffer ends: there the counters lie.
int* counters(const std::vector<ChainItem>& items, void* workspace) {
  int64_t end = 0;
  for (const ChainItem& item : items) {
    for (const ChainBuffer& buffer : item.buffers) end = std::max(end, buffer.offset + item.batch * buffer.batch_stride);
  }
  return reinterpret_cast<int*>(static_cast<char*>(workspace) + 2 * end);
}

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
          matrices(item, p.b, workspace),
          matrices(item, p.c, workspace),
          matrices(item, p.out, workspace),
          p.alpha,
          p.beta,
          p.delta,
          matrices(item, p.norms, workspace),
          {p.powers[0], p.powers[1], p.powers[2]}};
}

sm90::GramNormsItem gram_norms_item(const ChainItem& item, const ChainProduct& p, void* workspace) {
  return {item.batch, item.buffers[p.a.buffer].rows, matrices(item, p.a, workspace), matrices(item, p.out, workspace)};
}

using ProductLaunch = std::variant<sm90::GemmLaunch, sm90::GramNormsLaunch>;

// The launches of a kind of product, one of each item.
cudaError_t prepare_together(ProductKind kind, const std::vector<std::pair<const ChainItem*, const ChainProduct*>>& together,
                             DType dtype, void* workspace, std::vector<ProductLaunch>& launches) {
  const auto append = [&](const auto& prepared) { launches.insert(launches.end(), prepared.begin(), prepared.end()); };
  if (kind == ProductKind::kGramNorms) {
    std::vector<sm90::GramNormsItem> list;
    for (const auto& [item, product] : together) list.push_back(gram_norms_item(*item, *product, workspace));
    std::vector<sm90::GramNormsLaunch> prepared;
    const auto count = static_cast<int64_t>(list.size());
    if (const cudaError_t error = sm90::prepare_gram_norms(list.data(), count, dtype, prepared)) return error;
    append(prepared);
    return cudaSuccess;
  }
  std::vector<GemmItem> list;
  for (const auto& [item, product] : together) list.push_back(gemm_item(*item, sm90::oriented(*product), workspace));
  std::vector<sm90::GemmLaunch> prepared;
  const cudaError_t error = sm90::prepare_gemms(kind == ProductKind::kSymmGemm, list.data(), static_cast<int64_t>(list.size()),
                                                {dtype, kTileBySizes}, prepared);
  append(prepared);
  return error;
}

cudaError_t prepare_products(const std::vector<ChainItem>& items, DType dtype, void* workspace,
                             std::vector<ProductLaunch>& launches) {
  std::vector<size_t> next(items.size(), 0);  // product of each chain
  const auto left = [&](size_t i) { return items[i].products.size() - next[i]; };
  for (;;) {
    // The chain with most products left decides which kind comes next.
    size_t longest = 0;
    for (size_t i = 1; i < items.size(); ++i) {
      if (left(i) > left(longest)) longest = i;
    }
    if (items.empty() || left(longest) == 0) return cudaSuccess;
    const ProductKind kind = items[longest].products[next[longest]].kind;
    std::vector<std::pair<const ChainItem*, const ChainProduct*>> together;
    for (size_t i = 0; i < items.size(); ++i) {
      if (left(i) == 0 || items[i].products[next[i]].kind != kind) continue;
      together.emplace_back(&items[i], &items[i].products[next[i]++]);
    }
    if (const cudaError_t error = prepare_together(kind, together, dtype, workspace, launches)) return error;
  }
}

}  // namespace

// What a workspace's address, its dtype and the device decide: tensor maps, tile shapes, grids.
struct Chains::Prepared {
  int device;
  DType dtype;
  void* workspace;
  int* counters;
  std::vector<sm90::SmallLaunch> small;
  std::vector<ProductLaunch> products;
  sm90::Replay replay;

  cudaError_t prepare(const std::vector<ChainItem>& items) {
    std::vector<sm90::SmallChain> chains;
    std::vector<ChainItem> others;
    for (const ChainItem& item : items) {
      if (item.batch == 0 || item.products.empty()) continue;
      if (std::optional<sm90::SmallChain> chain = sm90::plan_small_chain(item)) {
        chains.push_back(std::move(*chain));
      } else {
        others.push_back(item);
      }
    }
    if (const cudaError_t error = sm90::prepare_small_chains(std::move(chains), dtype, workspace, small)) return error;
    return prepare_products(others, dtype, workspace, products);
  }

  cudaError_t launch(cudaStream_t stream) {
    if (small.size() + products.size() < kFewestReplayed) return enqueue(stream);
    return replay.run(stream, [this](cudaStream_t on) { return enqueue(on); });
  }

  cudaError_t enqueue(cudaStream_t stream) const {
    for (const sm90::SmallLaunch& one : small) {
      if (const cudaError_t error = sm90::enqueue(one, stream)) return error;
    }
    // Each launch has a counter to itself, so that it can draw its first tasks while the one before it ends.
    const auto in_rounds = [](const ProductLaunch& one) {
      const auto* gemm = std::get_if<sm90::GemmLaunch>(&one);
      return gemm != nullptr && gemm->in_rounds();
    };
    const auto counted = std::count_if(products.begin(), products.end(), in_rounds);
    if (counted > 0) {
      if (const cudaError_t error = cudaMemsetAsync(counters, 0, counted * sizeof(int), stream)) return error;
    }
    bool dependent = counted == 0;  // what draws before its dependencies have ended must find zeros
    int* next = counters;
    for (const ProductLaunch& one : products) {
      if (const auto* norms = std::get_if<sm90::GramNormsLaunch>(&one)) {  // never the first
        if (const cudaError_t error = sm90::enqueue(*norms, stream)) return error;
        continue;
      }
      int* const counter = in_rounds(one) ? next++ : nullptr;
      if (const cudaError_t error = sm90::enqueue(std::get<sm90::GemmLaunch>(one), counter, stream, dependent)) return error;
      dependent = true;
    }
    return cudaSuccess;
  }
};

Chains::Chains(std::vector<ChainItem> items) : items_(std::move(items)) {}
Chains::~Chains() = default;

cudaError_t Chains::launch(DType dtype, void* workspace, cudaStream_t stream) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  auto found = std::find_if(kept_.begin(), kept_.end(), [&](const auto& kept) {
    return kept->device == device && kept->dtype == dtype && kept->workspace == workspace;
  });
  if (found == kept_.end()) {
    std::unique_ptr<Prepared> prepared(new Prepared{device, dtype, workspace, counters(items_, workspace), {}, {}, {}});
    if (const cudaError_t error = prepared->prepare(items_)) return error;
    if (kept_.size() == kKept) kept_.erase(kept_.begin());
    found = kept_.insert(kept_.end(), std::move(prepared));
  }
  return (*found)->launch(stream);
}

}  // namespace muon_kernels
