// The order in which a persistent grid visits the tiles of a problem list.
//
// A task is what the blocks of one cluster compute at a time. The entries follow each other, then the matrices of an
// entry, then the tasks of a matrix, in an order in which clusters that run together share operands in L2. A symmetric
// walk visits only tiles that meet the lower triangle. Smaller tiles, if any, come last (numbered from table.tasks on).
#pragma once

#include <type_traits>

#include "problem.h"
#include "tile.cuh"

namespace muon_kernels::sm90 {

struct TileAt {
  int entry, batch, row, col;  // of this block's tile; row and col in elements
  bool shares_a;               // the blocks of the cluster have the same row, else the same column
  bool part;                   // smaller: only the left half of the columns, or a quarter
};

// Number of tasks in a last round that a round of quarters can replace, or 0. No clusters: a device with one multiprocessor.
inline int last_round_in_quarters(int tasks, int clusters) {
  if (clusters == 0) return 0;
  const int rest = tasks % clusters;
  return 4 * rest <= clusters ? rest : 0;
}

// In a launch that ends with quarters, those of the last tasks: the task that number `task` is a quarter of.
template <class Shape, bool kSymmetric>
__device__ __forceinline__ int whole_task(const GemmTable& table, int task) {
  if (!(kSymmetric && Shape::kQuarters) || task < table.tasks) return task;
  return table.tasks + (task - table.tasks) / 4;
}

template <class Shape, bool kSymmetric>
__device__ __forceinline__ int entry_of(const GemmTable& table, int task) {
  int entry = 0;
  if (task < table.tasks || (kSymmetric && Shape::kQuarters)) {
    task = whole_task<Shape, kSymmetric>(table, task);
    while (entry + 1 < table.count && task >= table.entries[entry + 1].first_task) ++entry;
  } else {
    while (entry + 1 < table.count && task - table.tasks >= table.entries[entry + 1].first_part) ++entry;
  }
  return entry;
}

// Cluster tiles of kRows x kTileN, all blocks in one column, in bands of about 2048 rows; inside a band columns are
// outer.
template <class Shape, bool kSymmetric>
struct BandedWalk {
  static constexpr int kRows = Shape::kTileM * Shape::kCluster;
  static constexpr int kBandTiles = 2048 / kRows;
  static constexpr bool kHalves = kSymmetric && Shape::kHalves;
  static constexpr int kRounding = kHalves ? 0 : Shape::kTileN - 1;

  // Number of column tiles of row tile r, not counting one of half the width.
  static __host__ __device__ int columns(int r, int col_tiles) {
    if (!kSymmetric) return col_tiles;
    const int reached = ((r + 1) * kRows + kRounding) / Shape::kTileN;
    return reached < col_tiles ? reached : col_tiles;
  }

  static __host__ __device__ int tasks(int m, int n) {
    int total = 0;
    for (int r = 0; r * kRows < m; ++r) total += columns(r, (n + Shape::kTileN - 1) / Shape::kTileN);
    return total;
  }

  static __host__ __device__ int halves(int m) { return kHalves ? (m + Shape::kTileN - 1) / Shape::kTileN : 0; }

  static __device__ __forceinline__ void locate(int task, int m, int n, int rank, TileAt& tile) {
    const int row_tiles = (m + kRows - 1) / kRows, col_tiles = (n + Shape::kTileN - 1) / Shape::kTileN;
    int first_row = 0, rows = 0;
    for (;; first_row += kBandTiles) {
      rows = min(kBandTiles, row_tiles - first_row);
      int band = rows * col_tiles;
      if (kSymmetric) {
        band = 0;
        for (int r = first_row; r < first_row + rows; ++r) band += columns(r, col_tiles);
      }
      if (task < band) break;
      task -= band;
    }
    const int full_columns = columns(first_row, col_tiles);  // those that all rows of the band reach
    int col, row;
    if (task < full_columns * rows) {
      col = task / rows;
      row = first_row + task % rows;
    } else {
      task -= full_columns * rows;
      for (col = full_columns;; ++col) {
        row = (col * Shape::kTileN + Shape::kTileN - 1 - kRounding) / kRows;  // first row tile that reaches this column
        const int here = first_row + rows - row;
        if (task < here) break;
        task -= here;
      }
      row += task;
    }
    tile.row = row * kRows + rank * Shape::kTileM;
    tile.col = col * Shape::kTileN;
    tile.shares_a = false;
  }
};

// The lower triangle of square tiles in pairs that share an operand, with at most one tile too many in all: column by
// column two rows at a time from the diagonal down; where a column has an odd number, its tile in the last row remains,
// and those pair up along that row.
template <class Shape>
struct PairedWalk {
  static constexpr int kEdge = Shape::kTileM;

  static __host__ __device__ int tasks(int m, int) {
    const int tiles = (m + kEdge - 1) / kEdge;
    int total = ((tiles + 1) / 2 + 1) / 2;
    for (int c = 0; c < tiles; ++c) total += (tiles - c) / 2;
    return total;
  }

  static __host__ __device__ int halves(int) { return 0; }

  static __device__ __forceinline__ void locate(int task, int m, int, int rank, TileAt& tile) {
    const int tiles = (m + kEdge - 1) / kEdge;
    int col = 0;
    for (; col < tiles && task >= (tiles - col) / 2; ++col) task -= (tiles - col) / 2;
    tile.shares_a = col == tiles;
    if (tile.shares_a) {
      tile.row = (tiles - 1) * kEdge;
      tile.col = ((tiles - 1) % 2 + 2 * (2 * task + rank)) * kEdge;  // past the last column if the last has no partner
    } else {
      tile.row = (col + 2 * task + rank) * kEdge;
      tile.col = col * kEdge;
    }
  }
};

template <class Shape, bool kSymmetric>
struct Walk {
  using Order = std::conditional_t<kSymmetric && Shape::kSquare && Shape::kCluster == 2, PairedWalk<Shape>,
                                   BandedWalk<Shape, kSymmetric>>;

  static __device__ __forceinline__ TileAt locate(const GemmTable& table, int task, uint32_t rank) {
    TileAt tile;
    tile.entry = entry_of<Shape, kSymmetric>(table, task);
    const GemmEntry& problem = table.entries[tile.entry];
    tile.part = kSymmetric && (Shape::kHalves || Shape::kQuarters) && task >= table.tasks;
    if (Shape::kHalves && tile.part) {
      task -= table.tasks + problem.first_part;
      tile.batch = task / problem.parts;
      tile.row = tile.col = (task - tile.batch * problem.parts) * Shape::kTileN;
      tile.shares_a = false;
    } else {
      const int quarter = (task - table.tasks) % 4;
      task = whole_task<Shape, kSymmetric>(table, task) - problem.first_task;
      tile.batch = task / problem.tasks;
      Order::locate(task - tile.batch * problem.tasks, problem.m, problem.n, static_cast<int>(rank), tile);
      if (Shape::kQuarters && tile.part) {
        tile.row += quarter / 2 * (Shape::kTileM / 2);
        tile.col += quarter % 2 * (Shape::kTileN / 2);
      }
    }
    return tile;
  }
};

}  // namespace muon_kernels::sm90
