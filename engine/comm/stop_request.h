// How a run is asked to end with a checkpoint: by a signal, to any of its ranks.

#ifndef QLORA_ENGINE_COMM_STOP_REQUEST_H_
#define QLORA_ENGINE_COMM_STOP_REQUEST_H_

#include <csignal>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/comm/ranks.h"

namespace qlora::engine {

// What a process' signal handler and its run tell each other.
struct StopFlag {
  volatile std::sig_atomic_t signal = 0;  // that it was sent; 0: none
  // Set by the run when a stop will be heeded. Before, it has nothing to save, and a signal may end
  // the process at once.
  volatile std::sig_atomic_t heeded = 0;
};

class StopRequest {
 public:
  // `ranks` is null where this process is alone. Both must outlive it.
  StopRequest(StopFlag* flag, Ranks* ranks) : flag_(*flag), ranks_(ranks) {}

  void Heed() { flag_.heeded = 1; }
  // The signal that this rank was sent, or has heard of from another; 0: none. Cheap. Tells the
  // others, which hear of it at different moments. Once asked, always asked.
  int Heard();
  // The same on all ranks, which all call it: the signal that one of them has heard of.
  absl::StatusOr<int> Agree();

 private:
  StopFlag& flag_;
  Ranks* const ranks_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_STOP_REQUEST_H_
