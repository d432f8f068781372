// optimizer.safetensors of a checkpoint: the fp32 masters and the moments of one course, tensor by
// tensor under the parameters' names. Neither the windows they lie in nor the ranks they are shared
// out over can be told from it.

#ifndef QLORA_ENGINE_CHECKPOINT_STATE_FILE_H_
#define QLORA_ENGINE_CHECKPOINT_STATE_FILE_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "engine/checkpoint/state_copy.h"
#include "engine/comm/host_exchange.h"
#include "engine/io/env.h"
#include "engine/step/execution.h"

namespace qlora::engine {

// Bytes of the file's tensors.
int64_t StateFileBytes(const Storage& storage, int64_t course);

// Writes and closes the file; `read` gives the values of this rank's views. Where the states are
// shared out, `exchange` brings those of the other ranks, which call SendStates meanwhile: of a run
// with one course. NumbersBad where a value is not finite.
absl::Status WriteStates(std::unique_ptr<WritableFile> file, const Storage& storage,
                         const StateReader& read, HostExchange* exchange, int64_t course = 0);
absl::Status SendStates(Execution* execution, HostExchange* exchange);

// Puts back what this rank has of the states, and all trained parameters of the course. DataLoss
// where the file's contents are not those of this run's parameters.
absl::Status ReadStates(Env* env, const std::string& path, Execution* execution,
                        int64_t course = 0);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_CHECKPOINT_STATE_FILE_H_
