// Where the tasks of a cluster come from, and how its warps learn of them.
//
// A counter in device memory gives the tasks out, in increasing order, to whichever cluster asks next, as in the dynamic
// persistent scheduler of FlashAttention-3 (arXiv:2407.08608). No task belongs to a cluster that does not run yet: where
// NCCL's blocks hold multiprocessors for a while, what waits for those finds its work done. Launches without a counter
// have fixed shares.
//
// One thread, the dealer of the cluster's first block, draws a task each time that block's producer asks, and sends it to
// a queue in every block's shared memory. The block's producer and its consumers read all of them, up to -1.
//
// Nobody waits for room in the queue. The dealer is asked for task j while task j - 1 is loaded, so task j - 2 has been
// given all its stages. A task takes at least one: what the last of them held before, kStages ago, was of task
// j - 2 - kStages or a later one, which the producers and consumers of all blocks have read by then, but for consumers who
// leave it to the other (alternating shapes) and have read the one before. Task j - kTaskSlots, whose slot task j takes,
// is older.
//
// Nothing can deadlock: a producer waits for the dealer and for stages, consumers for the dealer and for producers, the
// dealer for its producer's question, each time for something earlier in the order of tasks; no cluster waits for another.
#pragma once

#include "problem.h"
#include "ptx.cuh"
#include "tile.cuh"

namespace muon_kernels::sm90 {

// The queue of a block, and a thread's place in it. In shared memory: a barrier by which the producer of the dealer's
// block asks, then the slots, each a barrier that completes when a task has come, and the task.
template <int kCluster>
class TaskQueue {
 public:
  explicit __device__ __forceinline__ TaskQueue(uint32_t base) : base_(base) {}

  static __device__ __forceinline__ void initialise(uint32_t base) {
    for (int i = 0; i <= kTaskSlots; ++i) barrier_init(base + kTaskSlotBytes * i, 1);
  }

  // The next task, once it has come.
  __device__ __forceinline__ int next() {
    const uint32_t parity = place_ / kTaskSlots & 1;
    if constexpr (kCluster == 1) {
      barrier_wait(slot(), parity);
    } else {
      barrier_wait_for_cluster(slot(), parity);
    }
    const int task = load_shared(slot() + 8);
    ++place_;
    return task;
  }

  // The producer of the dealer's block, once for each task: in about a microsecond it will want the next.
  __device__ __forceinline__ void ask() const { barrier_arrive(base_); }

  // The dealer, whose place is that of the task it deals: to all blocks.
  __device__ __forceinline__ void send(int task) const {
    if constexpr (kCluster == 1) {
      store_shared(slot() + 8, task);
      barrier_arrive(slot());
    } else {
#pragma unroll
      for (uint32_t rank = 0; rank < kCluster; ++rank) {
        store_remote(slot() + 8, task, rank);
        barrier_release_remote(slot(), rank);
      }
    }
  }

  __device__ __forceinline__ void wait_for_question() {
    barrier_wait(base_, place_ & 1);
    ++place_;
  }

 private:
  __device__ __forceinline__ uint32_t slot() const { return base_ + kTaskSlotBytes * (1 + place_ % kTaskSlots); }

  uint32_t base_, place_ = 0;
};

// Tasks `cluster`, `cluster` + `clusters`, ... A cluster that had one whole task more than others misses the turn at which
// those take their second of the smaller tiles.
class FixedShare {
 public:
  __device__ __forceinline__ FixedShare(int tasks, int cluster, int clusters)
      : tasks_(tasks), clusters_(clusters), turn_(cluster) {}

  __device__ __forceinline__ int next() {
    int turn = turn_, missed = 0;
    if (turn >= tasks_) {
      const int ahead = tasks_ % clusters_;                       // clusters with one whole task more
      const int even = tasks_ + (clusters_ - ahead) % clusters_;  // turns until all have had as many
      if (turn >= even) missed = ahead;
      if (turn >= even && turn < even + ahead) turn += clusters_;
    }
    turn_ = turn + clusters_;
    return turn - missed;
  }

 private:
  int tasks_, clusters_, turn_;
};

// `counter`: of this launch alone, 0 when it starts; or null.
template <class Shape>
class TaskDealer {
  static_assert(Shape::kStages + 3 <= kTaskSlots);

 public:
  __device__ __forceinline__ TaskDealer(const GemmTable& table, int* counter)
      : counter_(counter),
        share_(table.tasks, blockIdx.x / Shape::kCluster, gridDim.x / Shape::kCluster),
        total_(table.tasks + table.parts) {}

  // The next task; the answer takes about a microsecond and is waited for where it is used.
  __device__ __forceinline__ void draw() { drawn_ = counter_ != nullptr ? fetch_increment(counter_) : share_.next(); }

  // Sends the task drawn last, or -1 after the last one.
  __device__ __forceinline__ void send(const TaskQueue<Shape::kCluster>& queue) const {
    queue.send(drawn_ < total_ ? drawn_ : -1);
  }

  // All tasks after the first, which has been sent.
  __device__ __forceinline__ void deal(TaskQueue<Shape::kCluster>& queue) {
    while (drawn_ < total_) {
      queue.wait_for_question();
      draw();
      send(queue);
    }
  }

 private:
  int* counter_;
  FixedShare share_;
  int total_, drawn_ = 0;
};

}  // namespace muon_kernels::sm90
