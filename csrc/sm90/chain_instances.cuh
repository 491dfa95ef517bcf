// Definition of launch_chain_table: numbers of tasks for a tile shape, the size of the bands, and the launch.
#pragma once

#include <algorithm>

#include "chain_kernel.cuh"
#include "launch.cuh"
#include "shapes.cuh"

namespace muon_kernels::sm90 {

// Tasks of one link in a band: as many as keep all clusters busy (each has two in hand and a third loading) while the
// first ones of the next link wait for the last ones of this.
inline constexpr int kBandTasksPerCluster = 4;

template <class Shape>
void count_tasks(ChainTable& table, int clusters) {
  for (Chain* chain = table.chains; chain < table.chains + table.count; ++chain) {
    uint32_t stores = 0;
    int tasks = 0;
    for (ChainLink* link = table.links + chain->first_link; link < table.links + chain->first_link + chain->links; ++link) {
      const bool symmetric = link->kind == LinkKind::kSymmetric || link->kind == LinkKind::kSymmetricMN;
      link->tasks = symmetric ? Walk<Shape, true>::Order::tasks(link->m, link->n)
                              : Walk<Shape, false>::Order::tasks(link->m, link->n);
      link->needed = stores;
      stores += link->tasks * ChainTasks<Shape>::kStoresPerTask;
      tasks += link->tasks;
    }
    if (chain->band == 0) chain->band = std::max(1, kBandTasksPerCluster * clusters * chain->links / tasks);
    const int bands = (chain->batch + chain->band - 1) / chain->band;
    chain->band = (chain->batch + bands - 1) / bands;  // of about equal size
  }
}

template <typename Element, class Shape>
cudaError_t launch_chain_shape(ChainTable& table, cudaStream_t stream) {
  const auto kernel = chain_sm90_kernel<Element, Shape>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes)) {
    return error;
  }
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {Shape::kCluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeCooperative;  // all blocks are resident: tasks wait for each other
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = multiprocessors() / Shape::kCluster * Shape::kCluster;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = Shape::kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  int clusters = 0;
  if (const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config)) return error;
  config.gridDim = std::min<int>(config.gridDim.x, clusters * Shape::kCluster);
  count_tasks<Shape>(table, config.gridDim.x / Shape::kCluster);
  return cudaLaunchKernelEx(&config, kernel, table);
}

template <typename Element>
cudaError_t launch_chain_table(ChainTable& table, int tile, cudaStream_t stream) {
  switch (tile) {
    case 1: return launch_chain_shape<Element, WithSquareBoxes<Pair>>(table, stream);
    case 4: return launch_chain_shape<Element, WithSquareBoxes<Small>>(table, stream);
    case 5: return launch_chain_shape<Element, WithSquareBoxes<Square>>(table, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace muon_kernels::sm90
