#include "engine/plan/economics.h"

#include <map>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/commands/evaluate.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

constexpr int64_t kBytesOf16Bits = 2;

// The last component of a module's path: "q_proj".
std::string Suffix(const std::string& module) { return module.substr(module.rfind('.') + 1); }

void AddTargets(const LoraTargets& targets, double model_parameters,
                proto::PlanReport::Economics* economics) {
  std::map<std::string, std::pair<int64_t, int64_t>> by_name;  // modules, parameters
  for (const AdaptedModule& module : targets.modules) {
    auto& [modules, parameters] = by_name[Suffix(module.module)];
    ++modules;
    parameters += module.ParameterCount();
  }
  for (const auto& [name, counts] : by_name) {
    proto::PlanReport::Target* target = economics->add_targets();
    target->set_name(name);
    target->set_modules(counts.first);
    target->set_parameters(counts.second);
    target->set_share(double(counts.second) / model_parameters);
  }
}

// The targets of the job, or, of a job that trains all weights, those of the defaults.
LoraTargets TargetsFor(const Setup& setup) {
  if (!setup.targets.modules.empty()) return setup.targets;
  proto::Lora lora;
  lora.set_r(16);
  lora.set_lora_alpha(16);
  lora.add_target_modules("all-linear");
  return *ResolveLoraTargets(lora, WeightRows(setup.spec));
}

void AddModes(const Setup& setup, proto::PlanReport::Economics* economics) {
  for (const auto mode : {proto::Mode::QLORA, proto::Mode::LORA, proto::Mode::FULL}) {
    RecordOptions options = setup.record;
    PlanLimits limits = setup.limits;
    options.storage.mode = mode;
    options.storage.lora = {TargetsFor(setup)};
    if (mode == proto::Mode::FULL) options.storage.lora.clear();
    if (mode != proto::Mode::QLORA) limits.loading_bytes = 0;
    const Plan plan = BestPlan(setup.spec, options, *setup.device, setup.rates, limits);
    const int64_t trained = plan.run.storage.space.trained();
    proto::PlanReport::ModeCost* cost = economics->add_modes();
    cost->set_mode(proto::Mode::Value_Name(mode));
    cost->set_fits(Fits(plan, limits));
    cost->set_device_bytes(plan.total_bytes);
    cost->set_host_bytes(plan.HostBytes());
    cost->set_seconds_per_step(
        StepSeconds(plan, setup.job.training().gradient_accumulation_steps()));
    cost->set_trained_parameters(trained);
    cost->set_result_bytes(trained * kBytesOf16Bits);
  }
}

}  // namespace

absl::StatusOr<PromptTokens> MeasurePrompts(const Setup& setup) {
  const std::string& instruction = setup.job.economics().instruction();
  const Dataset& data = setup.train_data.samples.empty() ? setup.eval_data : setup.train_data;
  if (instruction.empty() || setup.tokenizer == nullptr || data.samples.empty()) {
    return PromptTokens{};
  }
  const absl::StatusOr<std::vector<int32_t>> ids =
      setup.tokenizer->Encode(instruction, SpecialTokens::kPlain, false);
  if (!ids.ok())
    return proto::BadJobError(absl::StrCat("economics.instruction: ", ids.status().message()));
  PromptTokens sums;
  for (const Sample& sample : data.samples) {
    const int64_t prompt = LastTrainedRun(sample).first;
    const std::string text =
        setup.tokenizer->Decode(absl::MakeConstSpan(sample.ids).first(prompt), true);
    // Where the data still carries it, it is what could be left out.
    const bool carries = absl::StrContains(text, instruction);
    sums.without += double(prompt) - (carries ? double(ids->size()) : 0);
    sums.with_instruction += double(prompt) + (carries ? 0 : double(ids->size()));
  }
  const double count = double(data.samples.size());
  return PromptTokens{sums.with_instruction / count, sums.without / count};
}

absl::StatusOr<proto::PlanReport::Economics> ReckonEconomics(const Setup& setup, double run_seconds,
                                                             bool modes) {
  const proto::Economics& given = setup.job.economics();
  proto::PlanReport::Economics economics;
  const int64_t parameters = ParameterCount(setup.spec);
  economics.set_model_parameters(parameters);
  economics.set_model_bytes(parameters * kBytesOf16Bits);
  if (!setup.targets.modules.empty()) {
    economics.set_adapter_bytes(setup.lora_size.adapter_bytes);
    economics.set_trained_parameters(setup.lora_size.trained_parameters);
    AddTargets(setup.targets, double(parameters), &economics);
  } else {
    economics.set_trained_parameters(parameters);
  }
  if (modes) AddModes(setup, &economics);

  const absl::StatusOr<PromptTokens> prompts = MeasurePrompts(setup);
  if (!prompts.ok()) return prompts.status();
  economics.set_prompt_tokens_with(prompts->with_instruction);
  economics.set_prompt_tokens_without(prompts->without);
  economics.set_tokens_saved_per_day((prompts->with_instruction - prompts->without) *
                                     given.calls_per_day());
  economics.set_saved_per_day(economics.tokens_saved_per_day() / 1e6 *
                              given.price_per_million_prompt_tokens());
  economics.set_training_hours(run_seconds / 3600 * setup.world());
  economics.set_training_cost(economics.training_hours() * given.cost_per_hour());
  if (economics.saved_per_day() > 0 && economics.training_cost() > 0) {
    economics.set_break_even_days(economics.training_cost() / economics.saved_per_day());
  }
  economics.set_currency(given.currency());
  return economics;
}

}  // namespace qlora::engine
