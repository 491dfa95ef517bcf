// The whole C++ surface of muon_kernels: plain structs of pointers, shapes and strides, and the launchers that take them.
//
// A launcher checks what it can check on the host, enqueues on the stream and returns; it never synchronises, allocates
// device memory or keeps what a pointer points to, so that every launcher can be captured in a CUDA graph. Tables of
// tensors travel by value as kernel parameters. Strides count elements.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace muon_kernels {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// One operand of an elementwise op, seen as a matrix.
struct MatrixView {
  void* data;
  int64_t row_stride;
  int64_t col_stride;
};

// A batch of matrices. In products one of row_stride and col_stride is 1.
struct MatrixBatch {
  void* data;
  int64_t batch_stride;
  int64_t row_stride;
  int64_t col_stride;
};

// ---- prologue: momentum update, Nesterov step, cast, and sum of squares, in one pass ----------------------------------

struct PrologueItem {
  int64_t rows;
  int64_t cols;
  MatrixView grad;      // read only
  MatrixView momentum;  // updated
  MatrixView out;       // written
};

struct PrologueArgs {
  DType grad_dtype;
  DType momentum_dtype;
  DType out_dtype;
  float momentum;
  float one_minus_momentum;  // rounded once from double, as torch.lerp rounds its weight
  bool nesterov;
  bool ema;
  bool maximize;
  const float* grad_scale;  // device scalar, or null
  const float* found_inf;   // device scalar, or null
  double* sumsq;            // one per item
  double* partials;         // scratch of prologue_partials() doubles
};

// Number of doubles that `partials` must hold for these items.
int64_t prologue_partials(const PrologueItem* items, int64_t count, const PrologueArgs& args);

cudaError_t launch_prologue(const PrologueItem* items, int64_t count, const PrologueArgs& args, cudaStream_t stream);

// ---- sum_squares: the squared Frobenius norm of every matrix of a problem list --------------------------------------------

struct SumSquaresItem {
  int64_t batch;
  int64_t rows;
  int64_t cols;
  MatrixBatch x;  // read only
};

// Number of doubles that `partials` must hold for these items.
int64_t sum_squares_partials(const SumSquaresItem* items, int64_t count, DType x_dtype);

// `sumsq`: one per matrix of all batches.
cudaError_t launch_sum_squares(const SumSquaresItem* items, int64_t count, DType x_dtype, double* sumsq,
                               double* partials, cudaStream_t stream);

// ---- normalize: out <- x / max(safety_factor * sqrt(sumsq), eps) -------------------------------------------------------

// A batch of matrices.
struct NormalizeItem {
  int64_t batch;
  int64_t rows;
  int64_t cols;
  MatrixView x;    // read only
  MatrixView out;  // written
  int64_t x_batch_stride;
  int64_t out_batch_stride;
};

struct NormalizeArgs {
  DType x_dtype;
  DType out_dtype;
  const double* sumsq;  // one per matrix of all batches, or null: of x, computed on the way
  double* scratch;      // of normalize_scratch() doubles if sumsq is null
  double eps;
  double safety_factor;
};

// Number of doubles that `scratch` must hold for these items, on the current device.
int64_t normalize_scratch(const NormalizeItem* items, int64_t count, const NormalizeArgs& args);

cudaError_t launch_normalize(const NormalizeItem* items, int64_t count, const NormalizeArgs& args, cudaStream_t stream);

// ---- prologue_normalize: both for matrices whose results lie in one place, in one launch ---------------------------------

constexpr int64_t kLargestMatrix = int64_t{1} << 31;  // elements of an item

// Number of doubles that prologue.partials must hold for these items.
int64_t prologue_normalize_scratch(const PrologueItem* items, int64_t count, const PrologueArgs& prologue);

// Bit for bit launch_prologue with bfloat16 outs, then launch_normalize of these by their sums to float16 in the same place.
// Sums stay inside: neither struct's sumsq is used.
cudaError_t launch_prologue_normalize(const PrologueItem* items, int64_t count, const PrologueArgs& prologue,
                                      const NormalizeArgs& norm, cudaStream_t stream);

// ---- apply: p <- p * (1 - lr * weight_decay) - lr * scale * update -----------------------------------------------------

struct ApplyItem {
  int64_t rows;
  int64_t cols;
  MatrixView param;   // updated
  MatrixView update;  // read only
  double scale;
};

struct ApplyArgs {
  DType param_dtype;
  DType update_dtype;
  double weight_decay;
  double lr;               // used when lr_device is null
  const void* lr_device;   // device scalar, or null
  bool lr_device_float64;  // lr_device points to a double, else to a float
  const float* found_inf;  // device scalar, or null
};

cudaError_t launch_apply(const ApplyItem* items, int64_t count, const ApplyArgs& args, cudaStream_t stream);

// ---- products: symm_gemm and gemm_add, 16-bit elements with fp32 accumulation, Hopper -----------------------------------

// out = alpha A B + beta C + delta I, with A [m, k], B [k, n], C and out [m, n].
struct GemmItem {
  int64_t batch;
  int64_t m;
  int64_t n;
  int64_t k;
  MatrixBatch a;
  MatrixBatch b;
  MatrixBatch c;  // data is null if there is none; oriented like out
  MatrixBatch out;
  float alpha;
  float beta;
  float delta;
  // Of the problem's own gram_norms, or data is null: then alpha, beta and delta are multiplied by these powers of each
  // matrix's gain. For symm_gemm only.
  MatrixBatch norms;
  int powers[3];
};

constexpr int kTileBySizes = -1;  // choose_gemm_tile decides

struct GemmArgs {
  DType dtype;  // bfloat16 or float16
  int tile;     // index of a tile shape of csrc/sm90/shapes.cuh, or kTileBySizes
};

// Every address, every stride but the unit one and the size along the unit stride must be a multiple of 16 bytes (8
// elements); k >= 1; sizes below 2^31.
// symm_gemm: A B and C are symmetric (m == n); the result is bitwise so. Delta is for symm_gemm only.
cudaError_t launch_symm_gemm_sm90(const GemmItem* items, int64_t count, const GemmArgs& args, cudaStream_t stream);
cudaError_t launch_gemm_add_sm90(const GemmItem* items, int64_t count, const GemmArgs& args, cudaStream_t stream);

// A batch of products that step one parameter each: param <- param (1 - lr weight_decay) - lr scale alpha A B, with
// alpha A B rounded to 16 bit in between.
struct GemmApplyItem {
  int64_t batch;
  int64_t m;
  int64_t n;
  int64_t k;
  MatrixBatch a;             // as in GemmItem, but no size need be a multiple of anything
  MatrixBatch b;
  const MatrixView* params;  // one per matrix, [m, n]: all with unit column stride, or all with unit row stride
  const double* scales;      // one per matrix
  float alpha;
};

// Operands are float16, parameters float32 or bfloat16. `overwrite`: param <- alpha A B; lr and the like are not read.
cudaError_t launch_gemm_apply_sm90(const GemmApplyItem* items, int64_t count, const ApplyArgs& args, bool overwrite,
                                   cudaStream_t stream);

// The tile shape for these items on a device of so many multiprocessors: a function of the sizes only.
int choose_gemm_tile(bool symmetric, const GemmItem* items, int64_t count, int multiprocessors);

// ---- chains: products that follow each other, for batches of matrices, Hopper ----------------------------------------

// One matrix of every problem of a chain, row-major, in a workspace.
struct ChainBuffer {
  int64_t offset;  // elements from the start of the workspace
  int64_t rows;
  int64_t cols;
  int64_t batch_stride;
  int64_t row_stride;
};

struct ChainOperand {
  int buffer;  // index into the chain's buffers, or -1: absent
  bool transposed;
};

enum class ProductKind : int { kGemmAdd = 0, kSymmGemm = 1, kGramNorms = 2 };

// out = alpha A B + beta C + delta * I. A symmetric product is X times its own transpose, or one of two symmetric matrices
// that commute; delta, norms and powers (GemmItem) are for those only. kGramNorms writes those of A to out.
struct ChainProduct {
  ProductKind kind;
  ChainOperand a, b, c, out, norms;
  float alpha, beta, delta;
  int powers[3];
};

// Norms are scratch: they may not be there after the chain.
//
// Buffers may overlap; what a product reads from one was written through the same one, or was there at the start. Of what
// a chain writes, that is there afterwards which no later product overwrote, but for scratch: a buffer that begins inside
// an earlier one is lost once it has been read.
struct ChainItem {
  int64_t batch;
  std::vector<ChainBuffer> buffers;
  std::vector<ChainProduct> products;
};

// Products of one chain run in order, those of different chains side by side; chains of small matrices run whole, in
// shared memory. The workspace, all offsets and all strides but the unit one are multiples of 16 bytes; sizes are free:
// what lies between the end of a row and the next multiple of 16 bytes may be overwritten. `dtype`: bfloat16 or float16.
// Behind the end of the last buffer there is room for an int a product, as scratch.
//
// Encoding the kernels' parameters takes longer than launching them, and an allocator tends to return the same workspace in
// every step: the parameters for the last kKept workspaces are kept. From the third launch on one of them long chains are
// replayed as a CUDA graph (sm90/replay.h), for which the driver allocates; not into a stream that is captured.
//
// Not for two threads at a time.
class Chains {
 public:
  explicit Chains(std::vector<ChainItem> items);
  ~Chains();

  cudaError_t launch(DType dtype, void* workspace, cudaStream_t stream);

 private:
  struct Prepared;
  static constexpr size_t kKept = 4;

  std::vector<ChainItem> items_;
  std::vector<std::unique_ptr<Prepared>> kept_;
};

}  // namespace muon_kernels
