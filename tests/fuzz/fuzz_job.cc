// A job from its text to the modules that it would adapt.
#include <google/protobuf/text_format.h>

#include "engine/lora/targets.h"
#include "engine/model/families.h"
#include "proto/job_check.h"
#include "proto/job_defaults.h"
#include "proto/sweep_jobs.h"
#include "tests/engine/model/config_text.h"
#include "tests/fuzz/fuzz_target.h"

namespace qlora::tests {

using proto::Command;

void FuzzJob(absl::string_view input) {
  static const auto* const kRows = new std::vector<engine::WeightRow>(
      WeightRows(*engine::ParseModelConfig(engine::GoodConfig("llama").dump(), "config.json")));
  const absl::string_view text = TakeText(&input);
  std::vector<std::string> overrides;
  if (!input.empty()) overrides.emplace_back(TakeText(&input));
  proto::LoadJob(text, "job.textproto", overrides, Command::kTrain, engine::CheckTargetPattern)
      .status()
      .IgnoreError();
  const auto job = proto::ParseJob(text, "job.textproto", overrides);
  if (!job.ok()) return;
  const proto::Job full = proto::WithDefaults(*job);
  bool is_good = false;
  for (const Command command :
       {Command::kTrain, Command::kPlan, Command::kInspect, Command::kEval, Command::kGenerate,
        Command::kQuantize, Command::kDrift, Command::kMerge, Command::kSweep}) {
    if (!proto::CheckJob(*job, command).ok()) continue;
    is_good = true;
    Require(proto::CheckJob(full, command).ok(), "defaults leave a good job good");
    if (command != Command::kSweep) continue;
    Require(!proto::SweepJobs(full).empty(), "a sweep trains something");
  }
  if (!is_good) return;
  Require(proto::WithDefaults(full).SerializeAsString() == full.SerializeAsString(),
          "defaults are filled in once");
  std::string printed;
  Require(google::protobuf::TextFormat::PrintToString(full, &printed), "a job can be printed");
  const auto again = proto::ParseJob(printed, "job.textproto", {});
  Require(again.ok() && again->SerializeAsString() == full.SerializeAsString(),
          "what is printed is the job");
  if (full.mode() == proto::Mode::FULL) return;
  const auto targets = engine::ResolveLoraTargets(full.lora(), *kRows);
  if (targets.ok()) Require(!targets->modules.empty(), "targets are modules");
}

}  // namespace qlora::tests
