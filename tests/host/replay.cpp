// A Replay (csrc/sm90/replay.h) over a CUDA runtime that only takes notes, for tests.
//
// Arguments: what fails when it is first called (a function of the runtime, "enqueue", or "record", the launches into a
// captured stream of our own) or "none"; then for every call of `run` whether the caller's stream is captured, 0 or 1. Out:
// a line a call, with its error and what happened; then what was left over.
#include "../../csrc/sm90/replay.h"

#include <cstdlib>
#include <iostream>
#include <string>
#include <utility>

namespace {

std::string failing;
bool captured = false;
cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
int streams = 0, captures = 0, graphs = 0, executables = 0, strict_calls = 0;
int stream, graph, executable;  // their addresses stand for CUDA's objects

cudaError_t outcome(const char* name) {
  if (failing != name) return cudaSuccess;
  failing.clear();
  return cudaErrorUnknown;
}

// A call that may invalidate what another stream captures.
cudaError_t unsafe(const char* name, int& count, int change) {
  if (mode != cudaStreamCaptureModeRelaxed) ++strict_calls;
  const cudaError_t error = outcome(name);
  if (error == cudaSuccess) count += change;
  return error;
}

}  // namespace

extern "C" {
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* other) {
  std::swap(mode, *other);
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  std::cout << " cleared";
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return outcome("cudaStreamIsCapturing");
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* made, unsigned flags) {
  if (flags != cudaStreamNonBlocking) return cudaErrorInvalidValue;
  *made = reinterpret_cast<cudaStream_t>(&stream);
  return unsafe("cudaStreamCreateWithFlags", streams, 1);
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return unsafe("cudaStreamDestroy", streams, -1); }
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  return unsafe("cudaStreamBeginCapture", captures, 1);
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* made) {
  --captures;
  const cudaError_t error = unsafe("cudaStreamEndCapture", graphs, 1);
  *made = error == cudaSuccess ? reinterpret_cast<cudaGraph_t>(&graph) : nullptr;
  return error;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t, unsigned long long) {
  const cudaError_t error = unsafe("cudaGraphInstantiate", executables, 1);
  if (error == cudaSuccess) *made = reinterpret_cast<cudaGraphExec_t>(&executable);
  return error;
}
cudaError_t cudaGraphDestroy(cudaGraph_t) { return unsafe("cudaGraphDestroy", graphs, -1); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return unsafe("cudaGraphExecDestroy", executables, -1); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t on) {
  if (on != nullptr) return cudaErrorInvalidValue;
  std::cout << " replayed";
  return outcome("cudaGraphLaunch");
}
}

int main(int count, char** arguments) {
  failing = arguments[1];
  {
    muon_kernels::sm90::Replay replay;
    for (int i = 2; i < count; ++i) {
      captured = std::atoi(arguments[i]) != 0;
      const cudaError_t error = replay.run(nullptr, [](cudaStream_t on) {
        std::cout << (on == nullptr ? " enqueued" : " recorded");
        return outcome(on == nullptr ? "enqueue" : "record");
      });
      std::cout << ' ' << error << '\n';
    }
  }
  for (const int left : {streams, captures, graphs, executables, static_cast<int>(mode), strict_calls}) {
    std::cout << left << ' ';
  }
  std::cout << '\n';
}
