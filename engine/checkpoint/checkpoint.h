// The state of a run in a checkpoint folder, and back.
//
// checkpoint-<step>/ holds the adapter as PEFT reads it (or the model, in FULL mode),
// optimizer.safetensors with the fp32 masters and the moments under the parameters' names,
// run_state.pb, trainer_state.json and the tokenizer's files. It is that of one course of the run:
// one of several adapters writes what it would alone.

#ifndef QLORA_ENGINE_CHECKPOINT_CHECKPOINT_H_
#define QLORA_ENGINE_CHECKPOINT_CHECKPOINT_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/checkpoint/state_copy.h"
#include "engine/comm/host_exchange.h"
#include "engine/io/adapter_file.h"
#include "engine/io/atomic_folder.h"
#include "engine/lora/residual_note.h"
#include "engine/report/trainer_state.h"
#include "engine/step/execution.h"
#include "proto/run_state.pb.h"

namespace qlora::engine {

// What goes beside the tensors, the same in every checkpoint of a run.
struct OutputFiles {
  AdapterConfig adapter;  // modes QLORA and LORA
  std::optional<ResidualNote> residual_note;
  std::string tokenizer_folder;  // its tokenizer files are copied
  std::string config_file;       // FULL mode: copied as config.json
  TrainerSettings trainer;
};

// Commits checkpoint-<step> in `output_dir`; after OK it survives a power cut. `read` gives the
// values of the views of `storage`. Where the states are shared out over ranks the others call
// SendStates meanwhile, and `exchange` brings what they send.
absl::Status SaveCheckpoint(Env* env, const std::string& output_dir, const Storage& storage,
                            const StateReader& read, const OutputFiles& files,
                            const proto::RunState& state, HostExchange* exchange = nullptr,
                            int64_t course = 0);
// The same of the run's memory as it is now.
absl::Status SaveCheckpoint(Env* env, const std::string& output_dir, Execution* execution,
                            const OutputFiles& files, const proto::RunState& state,
                            HostExchange* exchange = nullptr, int64_t course = 0);

// Puts parameters and optimizer states back from a folder that VerifyFolder has accepted. DataLoss
// where its contents are not those of this run's parameters.
absl::StatusOr<proto::RunState> LoadCheckpoint(Env* env, const std::string& folder,
                                               Execution* execution, int64_t course = 0);

// Writes what the user asked for, the adapter or the model, with tokenizer and trainer_state.json,
// into `folder` itself; every file atomically, then SHA256SUMS of the weights and their config,
// whose rank and alpha are part of what an adapter does.
absl::Status WriteFinalOutput(Env* env, const std::string& folder, Execution* execution,
                              const OutputFiles& files, const proto::RunState& state,
                              int64_t course = 0);

// What a checkpoint says of the run that wrote it; LoadCheckpoint gives this too.
absl::StatusOr<proto::RunState> ReadRunState(Env* env, const std::string& folder);

// Reads a PEFT adapter into the run's trained parameters: init_from, eval.adapter,
// generate.adapter. The file must hold exactly the run's modules.
absl::Status LoadAdapter(Env* env, const std::string& folder, Execution* execution,
                         int64_t course = 0);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_CHECKPOINT_CHECKPOINT_H_
