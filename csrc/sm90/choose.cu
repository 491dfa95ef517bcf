// Which tile shape a problem list gets: the one with the least predicted time, from sizes alone. No autotuning.
//
// Time = fixed + rounds * (k steps * step + tile), where a round is one tile on every cluster and a step is 64 of k; a
// step takes as long as the slowest of shared memory, L2 and the tensor cores. Figures in microseconds, fitted to two
// runs on an H100 of 700 W, then set by hand where whole steps, and products that ran for a quarter of a second at the clock
// that its power allows, said otherwise (bench/NOTES.md).
#include <algorithm>
#include <cmath>
#include <limits>

#include "../api.h"
#include "launch.cuh"
#include "shapes.cuh"
#include "walk.cuh"

namespace muon_kernels {
namespace {

struct Costs {
  float shared_step;  // bytes through shared memory at 128 B a cycle
  float l2_step;      // bytes from L2 at 9.2 TB/s when every multiprocessor loads
  float tensor_step;  // the sustained rate of the tensor cores when every multiprocessor computes
  float tile;         // of the epilogue, what the next tile's products do not hide
  float mirrored;     // the same of a symmetric tile, which is stored twice
  float applied;      // the same where parameters are stepped
  float fixed;        // launch, filling the stages, the last epilogue
};

constexpr Costs kCosts[] = {
    {0.585f, 0.459f, 0.710f, 2.5f, 4.5f, 8.0f, 8.0f},  // WidePair
    {0.366f, 0.344f, 0.400f, 0.9f, 1.1f, 0.0f, 7.0f},  // Pair
    {0.474f, 0.610f, 0.530f, 0.8f, 0.0f, 0.8f, 6.0f},  // Oblong
    {0.585f, 0.740f, 0.710f, 2.5f, 6.0f, 0.0f, 6.3f},  // Wide
    {0.146f, 0.200f, 0.100f, 0.4f, 0.5f, 0.4f, 4.0f},  // Small
    {0.366f, 0.459f, 0.355f, 0.6f, 0.7f, 0.0f, 5.0f},  // Square
};

// Of a round of whole tiles: 256 bytes a cycle through shared memory instead of 160, for a quarter of the products.
constexpr float kQuarterRound = 0.45f;

template <bool kSymmetric, class Shape>
float predicted_time(const Costs& costs, float tile, const GemmItem* items, int64_t count, int multiprocessors) {
  using Order = typename sm90::Walk<Shape, kSymmetric>::Order;
  const float clusters = static_cast<float>(multiprocessors / Shape::kCluster);
  float tasks = 0, halves = 0, steps = 0;
  for (int64_t i = 0; i < count; ++i) {
    const GemmItem& item = items[i];
    const int m = static_cast<int>(item.m), n = static_cast<int>(item.n);
    const float batch = static_cast<float>(item.batch);
    const float whole = batch * Order::tasks(m, n), half = batch * Order::halves(m);
    tasks += whole;
    halves += half;
    steps += (whole + half / 2) * static_cast<float>((item.k + sm90::kTileK - 1) / sm90::kTileK);
  }
  steps /= std::max(tasks + halves / 2, 1.0f);  // of the mean tile
  float rounds = std::ceil(tasks / clusters);
  if (halves > 0) rounds = std::max(std::ceil((2 * tasks + halves) / clusters) / 2, tasks > 0 ? 1.0f : 0.5f);
  if (kSymmetric && Shape::kQuarters) {
    const int rest = sm90::last_round_in_quarters(static_cast<int>(tasks), multiprocessors / Shape::kCluster);
    if (rest > 0) rounds += kQuarterRound - 1;
  }
  const float busy = std::min(1.0f, (tasks + halves) / clusters);
  const float step = std::max(costs.shared_step, busy * std::max(costs.l2_step, costs.tensor_step));
  return costs.fixed + rounds * (steps * step + tile);
}

// `tile`: what storing a tile costs.
template <bool kSymmetric>
auto cheapest(float Costs::*tile, const GemmItem* items, int64_t count, int multiprocessors, int& best) {
  return [=, &best, time = std::numeric_limits<float>::max()](int index, auto shape) mutable {
    const Costs& costs = kCosts[index];
    const float here = predicted_time<kSymmetric, decltype(shape)>(costs, costs.*tile, items, count, multiprocessors);
    if (here < time) best = index, time = here;
  };
}

}  // namespace

int choose_gemm_tile(bool symmetric, const GemmItem* items, int64_t count, int multiprocessors) {
  int best = 0;
  if (symmetric) {
    sm90::for_each_shape<true>(cheapest<true>(&Costs::mirrored, items, count, multiprocessors, best));
  } else {
    sm90::for_each_shape<false>(cheapest<false>(&Costs::tile, items, count, multiprocessors, best));
  }
  return best;
}

int sm90::choose_gemm_apply_tile(const GemmItem* items, int64_t count, int multiprocessors) {
  int best = 0;
  sm90::for_each_apply_shape(cheapest<false>(&Costs::applied, items, count, multiprocessors, best));
  return best;
}

}  // namespace muon_kernels
