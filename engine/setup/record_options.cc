#include "engine/setup/record_options.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/job_identity.h"
#include "engine/record/check_size.h"
#include "proto/errors.h"
#include "proto/job_defaults.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using proto::Command;

// Sequences generated at a time in evaluation: more share each pass over the weights, at the price
// of cache memory.
constexpr int64_t kEvalSequences = 16;
// Tokens of a prompt fed at a time.
constexpr int64_t kPrefillTokens = 512;

StorageOptions StorageOf(const Setup& setup) {
  const proto::Training& training = setup.job.training();
  StorageOptions storage;
  storage.mode = setup.job.mode();
  storage.compute = ComputeTypeOf(setup.job);
  storage.quant = QuantSpecOf(setup.job.quantization());
  if (!setup.targets.modules.empty()) storage.lora = {setup.targets};
  storage.training = IsAboutTraining(setup.command);
  storage.eight_bit_states = training.optim() == proto::Optimizer::PAGED_ADAMW_8BIT ||
                             training.optim() == proto::Optimizer::ADAMW_8BIT;
  storage.weight_decay = float(training.weight_decay());
  if (training.gradient_sum() == proto::GradientSum::TREE) {
    storage.pending_gradients = PendingGradients(training.gradient_accumulation_steps());
  }
  storage.ranks = setup.world();
  storage.rank = setup.ranks == nullptr ? 0 : setup.ranks->rank();
  storage.shard_states = storage.ranks > 1 && setup.job.parallel().shard_states();
  storage.shard_base = storage.ranks > 1 && setup.job.parallel().shard_base();
  return storage;
}

// What a micro-batch may hold; without data, which only a plan can do without, full rows.
BatchCapacity TrainCapacity(const Setup& setup) {
  if (setup.train_batches) return setup.train_batches->capacity();
  if (!IsAboutTraining(setup.command)) return {};
  const int64_t rows = setup.job.training().per_device_train_batch_size();
  const int64_t tokens = rows * setup.job.data().max_length();
  return {tokens, rows, tokens};
}

absl::Status CheckLogits(const Setup& setup) {
  const proto::DataFormat::Value format = setup.eval_data.report.format;
  if (format == proto::DataFormat::PRETOKENIZED) return absl::OkStatus();
  return proto::BadJobError(absl::StrCat(
      "eval.logits_file: found a file in format ", proto::DataFormat::Value_Name(format),
      "; allowed: format PRETOKENIZED; logits are compared id by id: give input_ids"));
}

// What format: AUTO has found.
absl::Status CheckExactMatch(const Setup& setup) {
  const proto::DataFormat::Value format = setup.eval_data.report.format;
  if (proto::HasPrompts(format)) return absl::OkStatus();
  return proto::BadJobError(absl::StrCat("eval.exact_match: found held-out data in format ",
                                         proto::DataFormat::Value_Name(format),
                                         "; allowed: formats with a prompt and an answer"));
}

std::optional<GenerationShape> GenerationOf(const Setup& setup) {
  // Tokens of a prompt and its answer; an answer ends where the model's positions do.
  const auto shape = [&](int64_t sequences, int64_t prompt, int64_t answer) {
    const int64_t context = std::min(prompt + answer, setup.spec.max_positions);
    return GenerationShape{sequences, context, std::min(kPrefillTokens, context)};
  };
  if (setup.command == Command::kGenerate) {
    return shape(1, int64_t(setup.prompts[0].size()), setup.job.generate().max_new_tokens());
  }
  if (!setup.eval_batches || !setup.job.eval().exact_match()) return std::nullopt;
  return shape(std::min(kEvalSequences, int64_t(setup.eval_data.samples.size())),
               setup.eval_data.report.longest, setup.job.eval().max_new_tokens());
}

}  // namespace

DType ComputeTypeOf(const proto::Job& job) {
  return job.compute_dtype() == proto::ComputeDtype::FP32 ? DType::kF32 : DType::kBf16;
}

absl::Status ChooseRecordOptions(Setup* setup) {
  Setup& s = *setup;
  const proto::Training& training = s.job.training();
  RecordOptions& record = s.record;
  record.storage = StorageOf(s);
  record.adam = {.beta1 = training.adam_beta1(),
                 .beta2 = training.adam_beta2(),
                 .epsilon = float(training.adam_epsilon()),
                 .max_grad_norm = float(training.max_grad_norm())};
  record.train = TrainCapacity(s);
  record.micro_batches = training.gradient_accumulation_steps();
  if (s.eval_batches) {
    record.eval = s.eval_batches->capacity();
    record.eval_logits = s.command == Command::kEval && s.job.eval().has_logits_file();
  }
  if (record.eval_logits) {
    if (absl::Status status = CheckLogits(s); !status.ok()) return status;
  }
  if (s.eval_batches && s.job.eval().exact_match()) {
    if (absl::Status status = CheckExactMatch(s); !status.ok()) return status;
  }
  record.generate = GenerationOf(s);
  const int64_t longest = s.train_batches              ? s.train_data.report.longest
                          : IsAboutTraining(s.command) ? s.job.data().max_length()
                                                       : 0;
  record.storage.rope_positions = std::max<int64_t>(
      {longest, s.eval_data.report.longest, record.generate ? record.generate->context : 0, 1});
  return CheckSize(s.spec, record);
}

}  // namespace qlora::engine
