// Host side of layout.cuh: the operands of one tensor as matrices, brought into the best order to walk.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../api.h"
#include "layout.cuh"

namespace muon_kernels {

// Element types Ts, one an operand; all operands have the same rows and cols.
template <typename... Ts>
class Matrices {
 public:
  Matrices(int64_t rows, int64_t cols, const MatrixView (&views)[sizeof...(Ts)]) : rows_(rows), cols_(cols) {
    for (int j = 0; j < kOperands; ++j) view_[j] = views[j];
    if (prefers_transpose()) {
      std::swap(rows_, cols_);
      for (MatrixView& v : view_) std::swap(v.row_stride, v.col_stride);
    }
    // The stride of a dimension of size 1 means nothing; give it the value that makes the matrix dense.
    for (MatrixView& v : view_) {
      if (cols_ == 1) v.col_stride = 1;
      if (rows_ == 1) v.row_stride = cols_ * v.col_stride;
    }
  }

  // Calls f with one Flat view or several when all operands are one run of memory in the same order, else with a Strided
  // view; stops at the first error.
  template <class F>
  cudaError_t visit(F&& f) const {
    if (!dense()) return f(strided());
    for (int64_t first = 0; first < rows_ * cols_; first += Flat<Ts...>::kLongest) {
      if (const cudaError_t error = f(flat(first))) return error;
    }
    return cudaSuccess;
  }

  bool dense() const {
    for (const MatrixView& v : view_) {
      if (v.col_stride != 1 || v.row_stride != cols_) return false;
    }
    return true;
  }

  // How many chunks visit() shows, give or take one: a function of sizes and strides, not of addresses.
  int64_t chunks() const { return dense() ? (rows_ * cols_ + kChunk - 1) / kChunk : strided().chunks(); }

 private:
  static constexpr int kOperands = sizeof...(Ts);

  // Elements may be visited in any order, so rows and columns may change places, for all operands at once.
  bool prefers_transpose() const {
    if (rows_ == 1 || cols_ == 1) return cols_ == 1 && rows_ != 1;
    int by_row = 0;
    int by_col = 0;
    for (const MatrixView& v : view_) {
      by_row += v.row_stride == 1;
      by_col += v.col_stride == 1;
    }
    return by_row > by_col;
  }

  // From element `first` on.
  Flat<Ts...> flat(int64_t first) const {
    constexpr int64_t kSizes[] = {sizeof(Ts)...};
    Flat<Ts...> view;
    view.n = static_cast<uint32_t>(std::min(rows_ * cols_ - first, Flat<Ts...>::kLongest));
    for (int j = 0; j < kOperands; ++j) view.data[j] = static_cast<char*>(view_[j].data) + first * kSizes[j];
    return view;
  }

  Strided<Ts...> strided() const {
    Strided<Ts...> view;
    view.rows = rows_;
    view.cols = cols_;
    for (int j = 0; j < kOperands; ++j) {
      view.data[j] = view_[j].data;
      view.row_stride[j] = view_[j].row_stride;
      view.col_stride[j] = view_[j].col_stride;
    }
    return view;
  }

  int64_t rows_;
  int64_t cols_;
  MatrixView view_[kOperands];
};

}  // namespace muon_kernels
