// The shapes of a product kernel: its tile, how two consumer warpgroups divide it, and the map of shared memory.
//
// Cooperative: both warpgroups share a tile, each takes half of its rows. Alternating: each warpgroup has whole tiles,
// one computes while the other stores. The kCluster blocks of a cluster take tiles that share B, or sometimes A
// (walk.cuh).
//
// Shared memory: kStages stages of [A box(es) | B box(es)], then per warpgroup kStagingBoxes boxes of 64 x 64 outputs,
// then a full and an empty barrier per stage, then the queue of tasks (tasks.cuh).
#pragma once

#include "wgmma.cuh"

namespace muon_kernels::sm90 {

inline constexpr int kConsumers = 2;                       // warpgroups that compute
inline constexpr int kThreads = 128 * (1 + kConsumers);     // one more warpgroup loads
inline constexpr int kBox = 64;                            // edge of an output box
inline constexpr int kTaskSlots = 16, kTaskSlotBytes = 16;  // of the queue of tasks

template <int kTileM_, int kTileN_, int kStages_, int kStagingBoxes_, int kCluster_, bool kAlternating_>
struct Tile {
  static constexpr int kTileM = kTileM_, kTileN = kTileN_, kStages = kStages_, kStagingBoxes = kStagingBoxes_;
  static constexpr int kCluster = kCluster_;
  static constexpr bool kAlternating = kAlternating_;

  static constexpr int kRowsPerConsumer = kAlternating ? kTileM : kTileM / kConsumers;
  static constexpr int kMmaRows = kRowsPerConsumer / 64;  // 64-row instructions along m per consumer
  static_assert(kRowsPerConsumer % 64 == 0 && kTileN % 64 == 0 && kTileN / kBox % kCluster == 0);

  static constexpr uint32_t kBytesA = kTileM / 64 * kBoxBytes;
  static constexpr uint32_t kBytesB = kTileN / 64 * kBoxBytes;
  static constexpr uint32_t kStageBytes = kBytesA + kBytesB;

  // Symmetric: the tile on an even diagonal position needs only its left half, and is computed as such.
  static constexpr bool kHalves = kTileN == 2 * kTileM && kCluster == 1;
  // Symmetric: if the last round of tiles fills less than a quarter of the clusters, quarters of them fill it better.
  static constexpr bool kQuarters = kTileM == 128 && kTileN == 128 && kCluster == 2 && kAlternating;
  static constexpr bool kSquare = kTileM == kTileN;  // either operand can be the shared one
  static constexpr int kBoxRowsA = kSquare ? kTileM / kCluster : kTileM;
  static constexpr int kBoxRowsB = kHalves ? kTileN / 2 : kTileN / kCluster;

  // C passes through the stages after the last k: boxes of kTileM x 64.
  static constexpr int kBoxesC = kTileN / kBox;
  static constexpr int kBoxesPerStage = kStageBytes / kBytesA;
  static constexpr int kStagesC = (kBoxesC + kBoxesPerStage - 1) / kBoxesPerStage;

  static constexpr uint32_t kStagingBytes = kBox * kBox * 2;
  static constexpr uint32_t kStagingOffset = kStages * kStageBytes;
  static constexpr uint32_t kBarrierOffset = kStagingOffset + kConsumers * kStagingBoxes * kStagingBytes;
  static constexpr uint32_t kTasksOffset = kBarrierOffset + 2 * 8 * kStages;
  static constexpr uint32_t kTasksBytes = (1 + kTaskSlots) * kTaskSlotBytes;
  static constexpr uint32_t kSharedBytes = kTasksOffset + kTasksBytes + 1024;  // 1024 to align the base
  static_assert(kSharedBytes <= 232448);
};

}  // namespace muon_kernels::sm90
