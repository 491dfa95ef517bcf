// Public launcher of gemm_apply: orients and sorts the products, cuts them into launches and lists their parameters.
#include <algorithm>
#include <vector>

#include "../api.h"
#include "launch.cuh"
#include "orient.h"

namespace muon_kernels {
namespace {

using sm90::kMaxEntries;
using sm90::kMaxTargets;

// A product and the targets of its matrices.
struct Piece {
  GemmItem item;  // its `out` has no address: strides only
  std::vector<sm90::ApplyTarget> targets;
};

// At most kMaxTargets matrices of an item, from `first` on.
Piece piece_of(const GemmApplyItem& item, int64_t first) {
  const int64_t batch = std::min<int64_t>(item.batch - first, kMaxTargets);
  const auto from = [first](MatrixBatch operand) {
    operand.data = static_cast<uint16_t*>(operand.data) + first * operand.batch_stride;
    return operand;
  };
  const MatrixView& shape = item.params[first];
  GemmItem product{batch, item.m, item.n, item.k, from(item.a), from(item.b), {nullptr, 0, 0, 1}, {}, item.alpha, 0.0f, 0.0f};
  product.out = {nullptr, 0, shape.row_stride, shape.col_stride};
  Piece piece{sm90::oriented<false>(product), {}};
  for (int64_t i = first; i < first + batch; ++i) {
    const MatrixView& param = item.params[i];
    piece.targets.push_back(
        {param.data, shape.col_stride == 1 ? param.row_stride : param.col_stride, item.scales[i]});
  }
  return piece;
}

}  // namespace

cudaError_t launch_gemm_apply_sm90(const GemmApplyItem* items, int64_t count, const ApplyArgs& args, bool overwrite,
                                   cudaStream_t stream) {
  if (args.update_dtype != DType::kFloat16) return cudaErrorInvalidValue;
  if (args.param_dtype == DType::kFloat16) return cudaErrorInvalidValue;
  std::vector<Piece> pieces;
  for (const GemmApplyItem* item = items; item < items + count; ++item) {
    if (item->m * item->n == 0) continue;
    for (int64_t first = 0; first < item->batch; first += kMaxTargets) pieces.push_back(piece_of(*item, first));
  }
  // As in gemm.cu.
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& x, const Piece& y) {
    const int mine = sm90::majors(x.item), other = sm90::majors(y.item);
    return mine != other ? mine < other : x.item.k > y.item.k;
  });
  const auto prepare = args.param_dtype == DType::kFloat32 ? sm90::prepare_apply_group<float>
                                                           : sm90::prepare_apply_group<__nv_bfloat16>;
  for (auto first = pieces.begin(); first != pieces.end();) {
    std::vector<GemmItem> group;
    sm90::ApplyTargets targets;
    targets.args = args;
    targets.overwrite = overwrite;
    size_t used = 0;
    auto last = first;
    for (; last != pieces.end() && group.size() < kMaxEntries && used + last->targets.size() <= kMaxTargets &&
           sm90::majors(last->item) == sm90::majors(first->item);
         ++last) {
      group.push_back(last->item);
      std::copy(last->targets.begin(), last->targets.end(), targets.list + used);
      used += last->targets.size();
    }
    sm90::GemmLaunch launch;
    if (const cudaError_t error = prepare(group.data(), static_cast<int>(group.size()), launch)) return error;
    if (const cudaError_t error = sm90::enqueue(launch, targets, stream)) return error;
    first = last;
  }
  return cudaSuccess;
}

}  // namespace muon_kernels
