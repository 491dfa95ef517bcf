// csrc/api.h on host memory, in plain loops: stands in for the kernels, so that what lies between Python and a launch is
// tested without a GPU. Arithmetic in float, as the kernels'; results are rounded where theirs are.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "api.h"
#include "sm90/gram_norms.h"

extern "C" const char* cudaGetErrorName(cudaError_t) { return "error"; }
extern "C" const char* cudaGetErrorString(cudaError_t) { return "an error"; }

namespace muon_kernels {
namespace {

using sm90::GramNormsItem;
using sm90::kNormRows;

float read(DType type, const void* data, int64_t i) {
  if (type == DType::kFloat32) return static_cast<const float*>(data)[i];
  if (type == DType::kFloat16) return static_cast<float>(static_cast<const _Float16*>(data)[i]);
  const uint32_t bits = uint32_t{static_cast<const uint16_t*>(data)[i]} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void write(DType type, void* data, int64_t i, float value) {
  if (type == DType::kFloat32) {
    static_cast<float*>(data)[i] = value;
  } else if (type == DType::kFloat16) {
    static_cast<_Float16*>(data)[i] = static_cast<_Float16>(value);
  } else {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);  // to the nearest, ties to even
    static_cast<uint16_t*>(data)[i] = std::isnan(value) ? 0x7fff : static_cast<uint16_t>(rounded >> 16);
  }
}

float rounded(DType type, float value) {
  uint32_t storage;
  write(type, &storage, 0, value);
  return read(type, &storage, 0);
}

int64_t at(const MatrixView& m, int64_t row, int64_t col) { return row * m.row_stride + col * m.col_stride; }

int64_t at(const MatrixBatch& m, int64_t batch, int64_t row, int64_t col) {
  return batch * m.batch_stride + row * m.row_stride + col * m.col_stride;
}

bool set(const float* flag) { return flag && *flag != 0.0f; }

double learning_rate(const ApplyArgs& args) {
  if (!args.lr_device) return args.lr;
  return args.lr_device_float64 ? *static_cast<const double*>(args.lr_device)
                                : *static_cast<const float*>(args.lr_device);
}

float stepped(const ApplyArgs& args, double scale, float param, float update) {
  const double lr = learning_rate(args);
  return static_cast<float>(1 - lr * args.weight_decay) * param - static_cast<float>(lr * scale) * update;
}

float gain(DType type, const MatrixBatch& norms, int64_t batch, int64_t side) {
  float square = 0, trace = 0;
  for (int64_t part = 0; part * kNormRows < side; ++part) {
    const float norm = read(type, norms.data, at(norms, batch, 0, part));
    square += norm * norm;
    trace += read(type, norms.data, at(norms, batch, 1, part));
  }
  return square == 0 ? 0 : std::sqrt(trace / std::sqrt(square));
}

void sum(DType type, const GramNormsItem& g) {
  for (int64_t batch = 0; batch < g.batch; ++batch) {
    for (int64_t part = 0; part * kNormRows < g.side; ++part) {
      float square = 0, trace = 0;
      for (int64_t row = part * kNormRows; row < std::min(g.side, (part + 1) * kNormRows); ++row) {
        for (int64_t col = 0; col < g.side; ++col) {
          const float x = read(type, g.gram.data, at(g.gram, batch, row, col));
          square += x * x;
          if (row == col) trace += x;
        }
      }
      write(type, g.norms.data, at(g.norms, batch, 0, part), std::sqrt(square));
      write(type, g.norms.data, at(g.norms, batch, 1, part), trace);
    }
  }
}

void multiply(DType type, const GemmItem& g) {
  for (int64_t batch = 0; batch < g.batch; ++batch) {
    float factors[] = {g.alpha, g.beta, g.delta};
    for (int i = 0; g.norms.data && i < 3; ++i) {
      factors[i] *= static_cast<float>(std::pow(gain(type, g.norms, batch, g.m), g.powers[i]));
    }
    const auto [alpha, beta, delta] = factors;
    for (int64_t row = 0; row < g.m; ++row) {
      for (int64_t col = 0; col < g.n; ++col) {
        float sum = 0;
        for (int64_t k = 0; k < g.k; ++k) {
          sum += read(type, g.a.data, at(g.a, batch, row, k)) * read(type, g.b.data, at(g.b, batch, k, col));
        }
        sum *= alpha;
        if (g.c.data) sum += beta * read(type, g.c.data, at(g.c, batch, row, col));
        if (row == col) sum += delta;
        write(type, g.out.data, at(g.out, batch, row, col), sum);
      }
    }
  }
}

cudaError_t multiply_all(const GemmItem* items, int64_t count, const GemmArgs& args) {
  for (const GemmItem* item = items; item < items + count; ++item) multiply(args.dtype, *item);
  return cudaSuccess;
}

}  // namespace

int64_t prologue_partials(const PrologueItem*, int64_t count, const PrologueArgs&) { return count; }

cudaError_t launch_prologue(const PrologueItem* items, int64_t count, const PrologueArgs& args, cudaStream_t) {
  const bool skip = set(args.found_inf);
  for (int64_t i = 0; i < count; ++i) {
    const PrologueItem& item = items[i];
    args.partials[i] = 0;
    for (int64_t row = 0; row < item.rows; ++row) {
      for (int64_t col = 0; col < item.cols; ++col) {
        float g = read(args.grad_dtype, item.grad.data, at(item.grad, row, col));
        if (args.grad_scale) g /= *args.grad_scale;
        if (args.maximize) g = -g;
        const int64_t place = at(item.momentum, row, col);
        float m = read(args.momentum_dtype, item.momentum.data, place);
        m = args.ema ? m + args.one_minus_momentum * (g - m) : args.momentum * m + g;
        m = rounded(args.momentum_dtype, m);
        if (!skip) write(args.momentum_dtype, item.momentum.data, place, m);
        float u = m;
        if (args.nesterov) u = args.ema ? g + args.momentum * (m - g) : g + args.momentum * m;
        u = skip ? 0.0f : rounded(args.out_dtype, u);
        write(args.out_dtype, item.out.data, at(item.out, row, col), u);
        args.partials[i] += double{u} * u;
      }
    }
  }
  std::copy(args.partials, args.partials + count, args.sumsq);
  return cudaSuccess;
}

int64_t sum_squares_partials(const SumSquaresItem* items, int64_t count, DType) {
  int64_t matrices = 0;
  for (int64_t i = 0; i < count; ++i) matrices += items[i].batch;
  return matrices;
}

cudaError_t launch_sum_squares(const SumSquaresItem* items, int64_t count, DType type, double* sumsq, double* partials,
                               cudaStream_t) {
  for (const SumSquaresItem* item = items; item < items + count; ++item) {
    for (int64_t batch = 0; batch < item->batch; ++batch, ++partials, ++sumsq) {
      *partials = 0;
      for (int64_t row = 0; row < item->rows; ++row) {
        for (int64_t col = 0; col < item->cols; ++col) {
          const double x = read(type, item->x.data, at(item->x, batch, row, col));
          *partials += x * x;
        }
      }
      *sumsq = *partials;
    }
  }
  return cudaSuccess;
}

int64_t normalize_scratch(const NormalizeItem* items, int64_t count, const NormalizeArgs&) {
  int64_t matrices = 0;
  for (int64_t i = 0; i < count; ++i) matrices += items[i].batch;
  return matrices;
}

cudaError_t launch_normalize(const NormalizeItem* items, int64_t count, const NormalizeArgs& args, cudaStream_t) {
  const double* sumsq = args.sumsq;
  if (!sumsq) {
    double* next = args.scratch;
    for (const NormalizeItem* item = items; item < items + count; next += item++->batch) {
      const MatrixBatch x{item->x.data, item->x_batch_stride, item->x.row_stride, item->x.col_stride};
      const SumSquaresItem squares{item->batch, item->rows, item->cols, x};
      std::vector<double> partials(item->batch);
      launch_sum_squares(&squares, 1, args.x_dtype, next, partials.data(), nullptr);
    }
    sumsq = args.scratch;
  }
  for (const NormalizeItem* item = items; item < items + count; ++item) {
    for (int64_t batch = 0; batch < item->batch; ++batch, ++sumsq) {
      const double norm = std::sqrt(*sumsq) * args.safety_factor;
      float factor = static_cast<float>(1.0 / std::max(norm, args.eps));
      if (norm < std::numeric_limits<float>::min()) factor = 0.0f;
      if (!std::isfinite(norm)) factor = std::numeric_limits<float>::quiet_NaN();
      for (int64_t row = 0; row < item->rows; ++row) {
        for (int64_t col = 0; col < item->cols; ++col) {
          const float x = read(args.x_dtype, item->x.data, at(item->x, row, col) + batch * item->x_batch_stride);
          write(args.out_dtype, item->out.data, at(item->out, row, col) + batch * item->out_batch_stride, x * factor);
        }
      }
    }
  }
  return cudaSuccess;
}

int64_t prologue_normalize_scratch(const PrologueItem*, int64_t count, const PrologueArgs&) { return 2 * count; }

cudaError_t launch_prologue_normalize(const PrologueItem* items, int64_t count, const PrologueArgs& prologue,
                                      const NormalizeArgs& norm, cudaStream_t) {
  PrologueArgs first = prologue;
  first.sumsq = prologue.partials + count;
  NormalizeArgs then = norm;
  then.sumsq = first.sumsq;
  launch_prologue(items, count, first, nullptr);
  std::vector<NormalizeItem> batches;
  for (const PrologueItem* item = items; item < items + count; ++item) {
    batches.push_back({1, item->rows, item->cols, item->out, item->out, 0, 0});
  }
  return launch_normalize(batches.data(), count, then, nullptr);
}

cudaError_t launch_apply(const ApplyItem* items, int64_t count, const ApplyArgs& args, cudaStream_t) {
  if (set(args.found_inf)) return cudaSuccess;
  for (const ApplyItem* item = items; item < items + count; ++item) {
    for (int64_t row = 0; row < item->rows; ++row) {
      for (int64_t col = 0; col < item->cols; ++col) {
        const int64_t place = at(item->param, row, col);
        const float update = read(args.update_dtype, item->update.data, at(item->update, row, col));
        const float param = read(args.param_dtype, item->param.data, place);
        write(args.param_dtype, item->param.data, place, stepped(args, item->scale, param, update));
      }
    }
  }
  return cudaSuccess;
}

cudaError_t launch_symm_gemm_sm90(const GemmItem* items, int64_t count, const GemmArgs& args, cudaStream_t) {
  return multiply_all(items, count, args);
}

cudaError_t launch_gemm_add_sm90(const GemmItem* items, int64_t count, const GemmArgs& args, cudaStream_t) {
  return multiply_all(items, count, args);
}

cudaError_t launch_gemm_apply_sm90(const GemmApplyItem* items, int64_t count, const ApplyArgs& args, bool overwrite,
                                   cudaStream_t) {
  if (set(args.found_inf)) return cudaSuccess;
  for (const GemmApplyItem* item = items; item < items + count; ++item) {
    for (int64_t batch = 0; batch < item->batch; ++batch) {
      const MatrixView& param = item->params[batch];
      for (int64_t row = 0; row < item->m; ++row) {
        for (int64_t col = 0; col < item->n; ++col) {
          float sum = 0;
          for (int64_t k = 0; k < item->k; ++k) {
            sum += read(DType::kFloat16, item->a.data, at(item->a, batch, row, k)) *
                   read(DType::kFloat16, item->b.data, at(item->b, batch, k, col));
          }
          const float product = rounded(DType::kFloat16, item->alpha * sum);
          const int64_t place = at(param, row, col);
          const float old = overwrite ? 0.0f : read(args.param_dtype, param.data, place);
          const float value = overwrite ? product : stepped(args, item->scales[batch], old, product);
          write(args.param_dtype, param.data, place, value);
        }
      }
    }
  }
  return cudaSuccess;
}

int choose_gemm_tile(bool, const GemmItem*, int64_t, int) { return 0; }

struct Chains::Prepared {};

Chains::Chains(std::vector<ChainItem> items) : items_(std::move(items)) {}
Chains::~Chains() = default;

cudaError_t Chains::launch(DType dtype, void* workspace, cudaStream_t) {
  int64_t end = 0, products = 0;
  for (const ChainItem& item : items_) {
    for (const ChainBuffer& buffer : item.buffers) end = std::max(end, buffer.offset + item.batch * buffer.batch_stride);
    products += static_cast<int64_t>(item.products.size());
  }
  std::fill_n(reinterpret_cast<int32_t*>(static_cast<uint16_t*>(workspace) + end), products, -1);
  for (const ChainItem& item : items_) {
    const auto matrices = [&](const ChainOperand& operand) {
      if (operand.buffer < 0) return MatrixBatch{};
      const ChainBuffer& buffer = item.buffers[operand.buffer];
      void* data = static_cast<uint16_t*>(workspace) + buffer.offset;
      return operand.transposed ? MatrixBatch{data, buffer.batch_stride, 1, buffer.row_stride}
                                : MatrixBatch{data, buffer.batch_stride, buffer.row_stride, 1};
    };
    for (const ChainProduct& p : item.products) {
      const ChainBuffer& a = item.buffers[p.a.buffer];
      const ChainBuffer& out = item.buffers[p.out.buffer];
      if (p.kind == ProductKind::kGramNorms) {
        sum(dtype, {item.batch, a.rows, matrices(p.a), matrices(p.out)});
        continue;
      }
      const int64_t k = p.a.transposed ? a.rows : a.cols;
      const int64_t m = p.out.transposed ? out.cols : out.rows, n = p.out.transposed ? out.rows : out.cols;
      multiply(dtype, {item.batch, m, n, k, matrices(p.a), matrices(p.b), matrices(p.c), matrices(p.out), p.alpha,
                       p.beta, p.delta, matrices(p.norms), {p.powers[0], p.powers[1], p.powers[2]}});
    }
  }
  return cudaSuccess;
}

}  // namespace muon_kernels
