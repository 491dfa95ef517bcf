// How a tensor of a multi-tensor launch is cut into chunks, and where the elements of a chunk lie in memory.
//
// A block of kThreads threads owns one chunk of about kChunk elements. A span is W neighbouring elements; neighbouring
// threads take neighbouring spans. W is the vector width of the dtypes for the first kChunk elements of a chunk, if it has as
// many and they are aligned for every operand, and 1 for the others. The cut depends on the tensor alone, never on the
// launch: sums over chunks have the same bits whatever else is in the list.
#pragma once

#include <cstdint>
#include <cstring>
#include <tuple>

namespace muon_kernels {

constexpr int kThreads = 256;
constexpr int kChunk = 4096;
constexpr int kTile = 64;  // a strided chunk is a tile of kTile x kTile elements
static_assert(kTile * kTile == kChunk);

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

  struct Span {
    int64_t start;
    bool exists;

    __device__ int64_t offset(int) const { return start; }
  };

  void* data[kOperands];
  uint32_t n;

  // Largest n: a longer run of memory is several views. A multiple of every chunk and vector.
  static constexpr int64_t kLongest = int64_t{1} << 31;

  // As it lies in a table: without the 4 bytes that would align the next entry.
  struct Packed {
    uint32_t words[2 * kOperands + 1];
  };

  Packed packed() const {
    Packed result;
    memcpy(result.words, data, sizeof(data));
    result.words[2 * kOperands] = n;
    return result;
  }

  static __device__ __forceinline__ Flat of(const Packed& packed) {
    Flat view;
#pragma unroll
    for (int j = 0; j < kOperands; ++j) {
      view.data[j] = reinterpret_cast<void*>(uint64_t{packed.words[2 * j + 1]} << 32 | packed.words[2 * j]);
    }
    view.n = packed.words[2 * kOperands];
    return view;
  }

  // The first chunk begins on a vector boundary, `lead` elements before the tensor, if one boundary serves all operands.
  __host__ __device__ int lead() const { return aligned() ? first_phase() : 0; }

  // The last chunk is longer rather than followed by one less than half full.
  __host__ __device__ int64_t chunks() const {
    const int64_t rounded = (int64_t{n} + lead() + kChunk / 2 - 1) / kChunk;
    return n > 0 && rounded == 0 ? 1 : rounded;
  }

  __device__ bool vectorised(uint32_t chunk) const {
    return aligned() && first(chunk) >= 0 && first(chunk) + kChunk <= n;
  }

  // Elements of the chunk, counting those before the tensor.
  __device__ int size(uint32_t chunk) const {
    return static_cast<int>((chunk + 1 == chunks() ? n : first(chunk + 1)) - first(chunk));
  }

  // From element k of the chunk on.
  template <int W>
  __device__ Span span(uint32_t chunk, int k) const {
    const int64_t start = first(chunk) + k;
    return {start, W > 1 || (start >= 0 && k < size(chunk))};
  }

 private:
  __device__ int64_t first(uint32_t chunk) const { return int64_t{chunk} * kChunk - lead(); }

  __host__ __device__ bool aligned() const {
    int j = 0;
    const int phases[] = {phase<Ts, kWidth>(data[j++])...};
    for (int i = 1; i < kOperands; ++i) {
      if (phases[i] != phases[0]) return false;
    }
    return true;
  }

  __host__ __device__ int first_phase() const {
    return phase<std::tuple_element_t<0, std::tuple<Ts...>>, kWidth>(data[0]);
  }
};

// Operands with their own row and column strides: padded rows, transposes, every other row.
template <typename... Ts>
struct Strided {
  static constexpr int kOperands = sizeof...(Ts);
  static constexpr int kWidth = vector_width<Ts...>();

  struct Span {
    int64_t starts[kOperands];
    bool exists;

    __device__ int64_t offset(int j) const { return starts[j]; }
  };

  void* data[kOperands];
  int64_t rows;
  int64_t cols;
  int64_t row_stride[kOperands];
  int64_t col_stride[kOperands];

  using Packed = Strided;

  Packed packed() const { return *this; }
  static __device__ __forceinline__ const Strided& of(const Packed& packed) { return packed; }

  __host__ __device__ int64_t chunks() const { return (rows + kTile - 1) / kTile * tiles_across(); }

  __device__ bool vectorised(uint32_t chunk) const {
    const bool whole = first_row(chunk) + kTile <= rows && first_col(chunk) + kTile <= cols;
    return whole && aligned();
  }

  __device__ constexpr int size(uint32_t) const { return kChunk; }

  template <int W>
  __device__ Span span(uint32_t chunk, int k) const {
    const int64_t row = first_row(chunk) + k / kTile;
    const int64_t col = first_col(chunk) + k % kTile;
    Span s;
#pragma unroll
    for (int j = 0; j < kOperands; ++j) s.starts[j] = row * row_stride[j] + col * col_stride[j];
    s.exists = W > 1 || (row < rows && col < cols);
    return s;
  }

 private:
  __host__ __device__ int64_t tiles_across() const { return (cols + kTile - 1) / kTile; }

  __device__ int64_t first_row(uint32_t chunk) const {
    return int64_t{chunk / static_cast<uint32_t>(tiles_across())} * kTile;
  }

  __device__ int64_t first_col(uint32_t chunk) const {
    return int64_t{chunk % static_cast<uint32_t>(tiles_across())} * kTile;
  }

  __device__ bool aligned() const {
    int j = 0;
    const int phases[] = {phase<Ts, kWidth>(data[j++])...};
    for (int i = 0; i < kOperands; ++i) {
      if (phases[i] != 0 || col_stride[i] != 1 || row_stride[i] % kWidth != 0) return false;
    }
    return true;
  }
};

}  // namespace muon_kernels
