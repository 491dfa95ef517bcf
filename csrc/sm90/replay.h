// Launches that repeat, replayed as a CUDA graph: one call instead of one for each.
//
// Programmatic launches are captured as edges of that kind, so that inside the graph kernels overlap as they do in a stream.
// Its first kernel and what follows it in the stream wait for what was before them to end.
#pragma once

#include <cuda_runtime_api.h>

namespace muon_kernels::sm90 {

// While it lives, this thread may create and destroy graphs although a stream is captured, here or in another thread: in
// other modes such calls could invalidate that capture.
class RelaxedCaptureMode {
 public:
  RelaxedCaptureMode() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCaptureMode() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCaptureMode(const RelaxedCaptureMode&) = delete;
  RelaxedCaptureMode& operator=(const RelaxedCaptureMode&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

class Replay {
 public:
  Replay() = default;
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  // A graph that still runs is freed when it has ended.
  ~Replay() {
    if (graph_ == nullptr) return;
    const RelaxedCaptureMode relaxed;
    cudaGraphExecDestroy(graph_);
  }

  // What `enqueue(stream)` does, which makes the same launches in every call, on one device.
  template <class Enqueue>
  cudaError_t run(cudaStream_t stream, const Enqueue& enqueue) {
    cudaStreamCaptureStatus status;
    if (const cudaError_t error = cudaStreamIsCapturing(stream, &status)) return error;
    // The caller's graph takes the launches one by one: there they overlap with what is around them.
    if (status != cudaStreamCaptureStatusNone) return enqueue(stream);
    // Tried once: where a graph cannot be had (out of memory, say), its error is cleared and the launches do without it.
    if (calls_ <= kCallsBefore && calls_++ == kCallsBefore && record(enqueue) != cudaSuccess) cudaGetLastError();
    return graph_ == nullptr ? enqueue(stream) : cudaGraphLaunch(graph_, stream);
  }

 private:
  // Recording takes the host longer than a call: not for one that may never come again.
  static constexpr int kCallsBefore = 2;

  template <class Enqueue>
  cudaError_t record(const Enqueue& enqueue) {
    const RelaxedCaptureMode relaxed;
    cudaStream_t stream;  // of our own: the caller's may be the default one, which cannot be captured
    if (const cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) return error;
    cudaGraph_t graph = nullptr;
    cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
    if (error == cudaSuccess) {
      error = enqueue(stream);
      const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
      if (error == cudaSuccess) error = ended;
    }
    if (error == cudaSuccess) error = cudaGraphInstantiate(&graph_, graph, 0);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    return error;
  }

  cudaGraphExec_t graph_ = nullptr;
  int calls_ = 0;
};

}  // namespace muon_kernels::sm90
