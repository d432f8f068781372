#include "engine/plan/economics.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/checkpoint_writer.h"
#include "engine/lora/initialize.h"
#include "engine/merge/merge_report.h"
#include "engine/model/load_weights.h"
#include "engine/plan/plan_changes.h"
#include "engine/plan/step_time.h"
#include "engine/record/check_size.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using Report = proto::PlanReport;

constexpr int64_t kBytesOf16Bits = 2;
// Ranks that are reckoned with beside the job's own.
constexpr int64_t kRanks[] = {2, 4, 8, 16, 32, 64, 128};

// The last component of a module's path: "q_proj".
std::string Suffix(const std::string& module) { return module.substr(module.rfind('.') + 1); }

Report::Trained TrainedBy(std::string name, const LoraTargets& targets, const ModelSpec& spec) {
  const LoraSize size = MeasureLora(targets, WeightRows(spec));
  Report::Trained trained;
  trained.set_name(std::move(name));
  trained.set_modules(int64_t(targets.modules.size()));
  trained.set_parameters(size.trained_parameters);
  trained.set_share(size.share);
  trained.set_bytes(size.adapter_bytes);
  return trained;
}

// All weights of the model.
Report::Trained TrainedInFull(const ModelSpec& spec) {
  Report::Trained trained;
  trained.set_name("all weights");
  trained.set_parameters(ParameterCount(spec));
  trained.set_share(1);
  trained.set_bytes(ParameterCount(spec) * kBytesOf16Bits);
  return trained;
}

LoraTargets TargetsOf(const Setup& setup) {
  return setup.targets.modules.empty() ? DefaultTargets(setup.spec) : setup.targets;
}

void AddTargets(const Setup& setup, Report::Economics* economics) {
  std::map<std::string, LoraTargets> by_name;
  for (const AdaptedModule& module : setup.targets.modules) {
    by_name[Suffix(module.module)].modules.push_back(module);
  }
  for (const auto& [name, targets] : by_name) {
    *economics->add_targets() = TrainedBy(name, targets, setup.spec);
  }
}

// The job's targets at other ranks, or what each adapter of a sweep has.
void AddRanks(const PlannedRun& run, Report::Economics* economics) {
  if (run.is_sweep()) {
    for (const Setup* setup : run.setups) {
      *economics->add_ranks() =
          TrainedBy(BaseName(setup->job.output_dir()), setup->targets, setup->spec);
    }
    return;
  }
  LoraTargets targets = TargetsOf(run.setup());
  std::set<int64_t> ranks(std::begin(kRanks), std::end(kRanks));
  ranks.insert(targets.modules.front().rank);
  for (const int64_t rank : ranks) {
    for (AdaptedModule& module : targets.modules) module.rank = rank;
    *economics->add_ranks() = TrainedBy(absl::StrCat("r = ", rank), targets, run.setup().spec);
  }
}

void AddModes(const PlannedRun& run, const Plan& plan, Report::Economics* economics) {
  const Setup& setup = run.setup();
  const auto seconds_of = [&](const Plan& any) {
    return TimeOfStep(any, setup.rates, setup.record.micro_batches)
        .SecondsOn(setup.world(), NetworkOf(setup.job.plan()));
  };
  for (const auto mode : {proto::Mode::QLORA, proto::Mode::LORA, proto::Mode::FULL}) {
    // Several models share nothing.
    if (mode == proto::Mode::FULL && run.is_sweep()) continue;
    RecordOptions options = setup.record;
    PlanLimits limits = setup.limits;
    options.storage.mode = mode;
    if (mode == proto::Mode::FULL) {
      options.storage.lora.clear();
      options.storage.shard_base = false;
    } else if (options.storage.lora.empty()) {
      options.storage.lora = {TargetsOf(setup)};
    }
    if (mode != setup.job.mode()) {
      limits.loading_bytes = LoadingBytes(setup.model ? &*setup.model : nullptr, setup.spec,
                                          options.storage, *setup.device, false);
    }
    if (!CheckSize(setup.spec, options).ok()) continue;
    Plan other = BestPlan(setup.spec, options, *setup.device, setup.rates, limits);
    const bool copies = !run.is_sweep() && PlanStateCopy(setup, &other);
    Report::Alternative* entry = economics->add_modes();
    entry->set_change(absl::StrCat("mode: ", proto::Mode::Value_Name(mode)));
    entry->set_fits(Fits(other, limits));
    entry->set_device_bytes(other.total_bytes);
    entry->set_host_bytes(other.HostBytes() + (copies ? StateCopyBeside(setup, other) : 0));
    entry->set_relative_time(seconds_of(other) / seconds_of(plan));
    *entry->mutable_trained() =
        mode == proto::Mode::FULL ? TrainedInFull(setup.spec)
                                  : TrainedBy("adapter", options.storage.lora.front(), setup.spec);
  }
}

// How long merging took where `merge` has measured it. Whatever the file holds, it is only shown.
void AddMerged(const PlannedRun& run, Report::Economics* economics) {
  if (run.output_dir.empty()) return;
  const std::optional<proto::MergeReport> report = ReadMergeReport(run.setup().env, run.output_dir);
  if (report) *economics->mutable_merged() = report->merged();
}

const Dataset& DataOf(const Setup& setup) {
  return setup.train_data.samples.empty() ? setup.eval_data : setup.train_data;
}

bool HasData(const PlannedRun& run) {
  return std::any_of(run.setups.begin(), run.setups.end(),
                     [](const Setup* setup) { return !DataOf(*setup).samples.empty(); });
}

// Why nothing is known of the prompts, where the job's figures ask for it.
std::string WhyUncounted(const PlannedRun& run) {
  const proto::Economics& given = run.setup().job.economics();
  const bool asks = given.has_instruction() || given.has_calls_per_day() ||
                    given.has_price_per_million_prompt_tokens();
  if (!asks) return "";
  return absl::StrCat("what a call saves is unknown: ",
                      given.instruction().empty()        ? "economics.instruction is not given"
                      : run.setup().tokenizer == nullptr ? "the model has no tokenizer.json"
                      : HasData(run)                     ? "no sample of the data has a prompt"
                                                         : "there are no data");
}

}  // namespace

absl::StatusOr<PromptTokens> MeasurePrompts(const PlannedRun& run) {
  const Setup& first = run.setup();
  const std::string& instruction = first.job.economics().instruction();
  if (instruction.empty() || first.tokenizer == nullptr) return PromptTokens{};
  const absl::StatusOr<std::vector<int32_t>> ids =
      first.tokenizer->Encode(instruction, SpecialTokens::kPlain, false);
  if (!ids.ok()) {
    return proto::BadJobError(absl::StrCat("economics.instruction: ", ids.status().message()));
  }
  PromptTokens sums;
  double count = 0;
  for (const Setup* setup : run.setups) {
    for (const Sample& sample : DataOf(*setup).samples) {
      const int64_t prompt = sample.prompt;
      if (prompt == 0) continue;
      const std::string text =
          first.tokenizer->Decode(absl::MakeConstSpan(sample.ids).first(prompt), true);
      // Where the data still carries it, it is what could be left out.
      const bool carries = absl::StrContains(text, instruction);
      sums.without += double(prompt) - (carries ? double(ids->size()) : 0);
      sums.with_instruction += double(prompt) + (carries ? 0 : double(ids->size()));
      ++count;
    }
  }
  if (count == 0) return PromptTokens{};
  return PromptTokens{sums.with_instruction / count, sums.without / count};
}

absl::StatusOr<Report::Economics> ReckonEconomics(const PlannedRun& run, const Plan& plan,
                                                  double run_seconds, bool modes) {
  const Setup& setup = run.setup();
  const proto::Economics& given = setup.job.economics();
  Report::Economics economics;
  const int64_t parameters = ParameterCount(setup.spec);
  economics.set_model_parameters(parameters);
  economics.set_model_bytes(parameters * kBytesOf16Bits);
  *economics.mutable_trained() = setup.targets.modules.empty()
                                     ? TrainedInFull(setup.spec)
                                     : TrainedBy("adapter", setup.targets, setup.spec);
  AddTargets(setup, &economics);
  AddRanks(run, &economics);
  if (modes) AddModes(run, plan, &economics);
  AddMerged(run, &economics);

  const absl::StatusOr<PromptTokens> prompts = MeasurePrompts(run);
  if (!prompts.ok()) return prompts.status();
  economics.set_prompt_tokens_with(prompts->with_instruction);
  economics.set_prompt_tokens_without(prompts->without);
  if (prompts->with_instruction == 0) economics.set_prompts_uncounted(WhyUncounted(run));
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
