// Everything that stands before the first buffer: the job's model, tokenizer, data, targets and
// device, opened and checked, and the options that the program is recorded with.

#ifndef QLORA_ENGINE_SETUP_SETUP_H_
#define QLORA_ENGINE_SETUP_SETUP_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/comm/host_exchange.h"
#include "engine/comm/ranks.h"
#include "engine/data/batcher.h"
#include "engine/io/checkpoint_files.h"
#include "engine/lora/initialize.h"
#include "engine/lora/residual_note.h"
#include "engine/plan/plan.h"
#include "engine/report/console.h"
#include "engine/step/execution.h"
#include "engine/text/tokenizer.h"
#include "kernels/device.h"
#include "proto/job.pb.h"
#include "proto/job_check.h"

namespace qlora::engine {

struct Setup {
  proto::Job job;  // with its defaults
  proto::Command command = proto::Command::kTrain;
  Env* env = nullptr;
  std::string model_folder;  // empty with model_init
  std::string tokenizer_folder;
  std::string config_file;  // config.json of the model
  ModelSpec spec;
  std::optional<ShardedModel> model;  // none with model_init
  std::shared_ptr<Tokenizer> tokenizer;
  std::shared_ptr<kernels::Device> device;
  LoraTargets targets;  // empty without adapters
  LoraSize lora_size;
  Dataset train_data, eval_data;  // empty where the command has none
  std::optional<Batcher> train_batches, eval_batches;
  std::string eval_source;  // of eval_data, for people: commands drift, merge, eval
  int64_t total_steps = 0;
  Ranks* ranks = nullptr;          // all that train together; null: this process alone. Borrowed
  bool device_is_planned = false;  // command plan: `device` is a card that need not be here
  int planned_world = 1;           // command plan: how many shall train together
  std::unique_ptr<HostExchange> exchange;  // null without ranks
  kernels::Buffer exchange_staging;
  std::vector<std::vector<int32_t>> prompts;  // command generate
  RecordOptions record;
  MachineRates rates;
  std::string rates_source;  // "measured here", or whose figures they are
  PlanLimits limits;
  std::string base_hash;  // SHA-256 over the names and contents of config.json and all weight files
  std::string job_text;   // what of the job decides the result, one field a line
  std::string job_hash;   // SHA-256 of job_text, base_hash and the data's hashes
  // HashSamples of train_data and of eval_data, where the command trains.
  std::string samples_hash, held_out_hash;
  // Of the adapter that is gone on from or used, where it started from a base's residual.
  std::optional<ResidualNote> residual_note;
  std::vector<std::string> warnings;

  int world() const { return ranks == nullptr ? planned_world : ranks->size(); }
  // Who takes the same model and data as this process, and from whom.
  SharedReading reading() const {
    return ranks == nullptr
               ? SharedReading{}
               : SharedReading{exchange.get(), absl::MakeConstSpan(ranks->neighbours())};
  }
  // Whether this process is the one that talks and writes.
  bool is_first() const { return ranks == nullptr || ranks->is_first(); }
};

// Whether a command is about a training run: its data, adapters and steps.
bool IsAboutTraining(proto::Command command);

// `job` is checked and has its defaults. Errors carry their exit code. The adapter of commands eval
// and generate is looked at (its rank and targets decide the program) but not read. `ranks`, where
// several processes train together, must outlive the result.
absl::StatusOr<std::unique_ptr<Setup>> PrepareSetup(const proto::Job& job, proto::Command command,
                                                    Env* env, Ranks* ranks = nullptr);

// The setup of one more adapter over the base of `first`, whose command, model, tokenizer, device
// and rates it takes over: `job` differs in what concerns the adapter and its data.
absl::StatusOr<std::unique_ptr<Setup>> PrepareBeside(const Setup& first, const proto::Job& job);

// Tokens that end a generated answer: the model's end tokens and, with a chat format, its end of
// turn.
std::vector<int32_t> StopIds(const Setup& setup);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_SETUP_SETUP_H_
