// A job from its text to the modules that it would adapt.
#include <google/protobuf/text_format.h>

#include "engine/lora/targets.h"
#include "engine/model/families.h"
#include "proto/job_check.h"
#include "proto/job_defaults.h"
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
  for (const Command command :
       {Command::kTrain, Command::kPlan, Command::kInspect, Command::kEval, Command::kGenerate}) {
    const auto job =
        proto::LoadJob(text, "job.textproto", overrides, command, engine::CheckTargetPattern);
    if (!job.ok()) continue;
    Require(proto::CheckJob(*job, command).ok(), "defaults leave a good job good");
    Require(proto::WithDefaults(*job).SerializeAsString() == job->SerializeAsString(),
            "defaults are filled in once");
    std::string printed;
    Require(google::protobuf::TextFormat::PrintToString(*job, &printed), "a job can be printed");
    const auto again = proto::ParseJob(printed, "job.textproto", {});
    Require(again.ok() && again->SerializeAsString() == job->SerializeAsString(),
            "what is printed is the job");
    if (job->mode() == proto::Mode::FULL) continue;
    const auto targets = engine::ResolveLoraTargets(job->lora(), *kRows);
    if (targets.ok()) Require(!targets->modules.empty(), "targets are modules");
  }
}

}  // namespace qlora::tests
