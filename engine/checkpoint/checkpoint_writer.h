// Checkpoints written beside training. The state is copied to host memory, which is all that
// training waits for, and a thread commits the copy while the next steps run; at most one is under
// way. Where the memory has no room for a copy, or the system refuses it or the thread, training
// waits for the whole commit.

#ifndef QLORA_ENGINE_CHECKPOINT_CHECKPOINT_WRITER_H_
#define QLORA_ENGINE_CHECKPOINT_CHECKPOINT_WRITER_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/state_copy.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// The copy in a plan's list.
inline constexpr char kStateCopyItem[] =
    "copy of the trained state, for the checkpoint being written";

// Whether the state is copied: where this process saves while it trains and the limits leave room.
// Then counts the copy among the plan's items, which are of the device's memory; a copy in host
// memory beside it is held against that memory's limit.
bool PlanStateCopy(const Setup& setup, Plan* plan);
// Bytes that a copy takes in host memory beside the plan: none where the device's is the host's.
int64_t StateCopyBeside(const Setup& setup, const Plan& plan);

class CheckpointWriter {
 public:
  struct Options {
    std::string output_dir;
    int64_t keep_last = 0;  // older ones are removed after each commit; 0: never
    bool beside = false;    // PlanStateCopy has counted the copy
    int64_t course = 0;
  };
  // Both must outlive it.
  CheckpointWriter(Env* env, Execution* execution, Options options);
  ~CheckpointWriter();  // waits

  // Waits for the one before; then copies the state and comes back. With `now`, or without room for
  // a copy, the checkpoint is committed when it returns; so it is with an `exchange`, which brings
  // the states of other ranks. Errors are of this one or of the one before, which then is not
  // followed by another.
  absl::Status Save(const OutputFiles& files, const proto::RunState& state, bool now,
                    HostExchange* exchange = nullptr);
  // The error of one that was written beside, as soon as it is known. Does not wait.
  absl::Status Check();
  // Waits for the one under way.
  absl::Status Finish();

 private:
  absl::Status Commit(const StateReader& read, const OutputFiles& files,
                      const proto::RunState& state, HostExchange* exchange) const;

  Env* const env_;
  Execution* const execution_;
  const Options options_;
  std::optional<StateCopy> copy_;  // from the first that is written beside
  std::thread thread_;
  std::atomic<bool> done_{false};
  absl::Status status_;  // of the thread; read when it has been joined
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_CHECKPOINT_CHECKPOINT_WRITER_H_
