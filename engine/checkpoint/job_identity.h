// What makes two runs the same run: the base, the data, and those fields of a job that decide the
// result.

#ifndef QLORA_ENGINE_CHECKPOINT_JOB_IDENTITY_H_
#define QLORA_ENGINE_CHECKPOINT_JOB_IDENTITY_H_

#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/comm/ranks.h"
#include "engine/io/checkpoint_files.h"
#include "proto/job.pb.h"
#include "quant/spec.h"

namespace qlora::engine {

// SHA-256 over config.json and, where there is a checkpoint, each of its weight files in name
// order. `on_part` as of Sha256File.
absl::StatusOr<std::string> HashBase(Env* env, const std::string& config_file,
                                     const std::optional<ShardedModel>& model,
                                     const std::function<void()>& on_part);

// The job in text format without what changes no byte of the result: paths, logging, saving,
// evaluation, limits. The device stands in it, since backends round differently.
std::string DecisiveJobText(const proto::Job& job, const std::string& device, int ranks);

// The job in text format without what each machine may choose for itself: beside the result the
// rest decides in which order ranks exchange what.
std::string AgreedJobText(const proto::Job& job, const std::string& device);

// Refuses, on all ranks, a job in which not all of them give the same lines: ranks that train
// something else, or were built otherwise, must not be summed.
absl::Status AgreeOnJob(Ranks* ranks, const std::string& mine);

// Lines that only one of two texts has, marked − (`before`) and + (`after`).
std::string DifferingLines(const std::string& before, const std::string& after);

quant::QuantSpec QuantSpecOf(const proto::Quantization& quantization);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_CHECKPOINT_JOB_IDENTITY_H_
