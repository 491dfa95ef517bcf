// How a tensor of a multi-tensor launch is cut into chunks, and where the elements of a chunk lie in memory.
//
// A block of kThreads threads owns one chunk of at most kChunk elements. Inside a chunk, "span" k is W neighbouring
// elements and belongs to thread k % kThreads, so neighbouring threads touch neighbouring memory. W is the vector width
// of the dtypes where alignment allows it, and 1 elsewhere. The cut depends on the tensor alone, never on the launch:
// sums over chunks have the same bits whatever else is in the list.
#pragma once

#include <cstdint>
#include <tuple>

namespace muon_kernels {

constexpr int kThreads = 256;
constexpr int kChunk = 4096;
constexpr int kTile = 64;  // a strided chunk is a tile of kTile x kTile elements
static_assert(kTile * kTile == kChunk);

__host__ __device__ inline int64_t clamp_to(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : (value > high ? high : value);
}

// The widest vector that is at most 16 bytes for every operand.
template <typename... Ts>
constexpr int vector_width() {
  int widest = 1;
  ((widest = sizeof(Ts) > widest ? sizeof(Ts) : widest), ...);
  return 16 / widest;
}

// Element index of `data` modulo the vector width: 0 when it starts on a vector boundary.
template <typename T, int W>
__host__ __device__ int phase(const void* data) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(data) / sizeof(T) % W);
}

// Operands that share one dense order of n elements: all chunks are runs of memory.
template <typename... Ts>
struct Flat {
  static constexpr int kOperands = sizeof...(Ts);
  static constexpr int kWidth = vector_width<Ts...>();

  void* data[kOperands];
  int64_t n;

  // Vectors need one phase for all operands: the first vector then begins `lead` elements before the tensor.
  __host__ __device__ bool vectorised() const {
    int j = 0;
    const int phases[] = {phase<Ts, kWidth>(data[j++])...};
    for (int i = 1; i < kOperands; ++i) {
      if (phases[i] != phases[0]) return false;
    }
    return true;
  }

  __host__ __device__ int64_t chunks() const { return (n + (vectorised() ? lead() : 0) + kChunk - 1) / kChunk; }

  // W neighbours, of which elements [begin, end) exist.
  struct Span {
    int64_t start;
    int begin;
    int end;

    __device__ int64_t offset(int) const { return start; }
  };

  template <int W>
  __device__ Span span(uint32_t chunk, int k) const {
    const int64_t start = int64_t{chunk} * kChunk + k * W - (W > 1 ? lead() : 0);
    return {start, static_cast<int>(clamp_to(-start, 0, W)), static_cast<int>(clamp_to(n - start, 0, W))};
  }

 private:
  __host__ __device__ int lead() const {
    return phase<std::tuple_element_t<0, std::tuple<Ts...>>, kWidth>(data[0]);
  }
};

// Operands with their own row and column strides: padded rows, transposes, every other row.
template <typename... Ts>
struct Strided {
  static constexpr int kOperands = sizeof...(Ts);
  static constexpr int kWidth = vector_width<Ts...>();

  void* data[kOperands];
  int64_t rows;
  int64_t cols;
  int64_t row_stride[kOperands];
  int64_t col_stride[kOperands];

  __host__ __device__ bool vectorised() const {
    int j = 0;
    const int phases[] = {phase<Ts, kWidth>(data[j++])...};
    for (int i = 0; i < kOperands; ++i) {
      if (phases[i] != 0 || col_stride[i] != 1 || row_stride[i] % kWidth != 0) return false;
    }
    return true;
  }

  __host__ __device__ int64_t tiles_across() const { return (cols + kTile - 1) / kTile; }

  __host__ __device__ int64_t chunks() const { return (rows + kTile - 1) / kTile * tiles_across(); }

  // W neighbours, of which elements [begin, end) exist; operand j has them from element starts[j] on.
  struct Span {
    int64_t starts[kOperands];
    int begin;
    int end;

    __device__ int64_t offset(int j) const { return starts[j]; }
  };

  template <int W>
  __device__ Span span(uint32_t chunk, int k) const {
    const uint32_t across = static_cast<uint32_t>(tiles_across());
    const int64_t row = int64_t{chunk / across} * kTile + k * W / kTile;
    const int64_t col = int64_t{chunk % across} * kTile + k * W % kTile;
    Span s;
#pragma unroll
    for (int j = 0; j < kOperands; ++j) s.starts[j] = row * row_stride[j] + col * col_stride[j];
    s.begin = 0;
    s.end = row < rows ? static_cast<int>(clamp_to(cols - col, 0, W)) : 0;
    return s;
  }
};

}  // namespace muon_kernels
