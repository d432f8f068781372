#include "engine/plan/plan_report.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "engine/plan/economics.h"
#include "engine/plan/plan_changes.h"
#include "engine/plan/scaling.h"
#include "engine/plan/step_time.h"
#include "engine/report/speed_log.h"
#include "engine/version.h"
#include "proto/job_ranges.h"

namespace qlora::engine {
namespace {

using Report = proto::PlanReport;

// Ranks that are looked at beside the job's own number.
constexpr int kMostRanks = 4096;

void AddItem(const std::string& name, const char* memory, int64_t bytes, Report* report) {
  if (bytes <= 0) return;
  Report::Item* item = report->add_items();
  item->set_name(name);
  item->set_memory(memory);
  item->set_bytes(bytes);
}

void AddMemory(const Setup& setup, const Plan& plan, Report* report) {
  const bool is_host = setup.device->info().is_host;
  const char* const device = is_host ? "host" : "device";
  for (const PlanItem& item : plan.items) AddItem(item.name, device, item.bytes, report);
  AddItem("optimizer states that are paged out", is_host ? "file" : "host", plan.StatesAway(),
          report);
  AddItem("layer inputs between forward and backward", "host", plan.InputsAway(), report);
  report->set_device_bytes(plan.total_bytes);
  report->set_limit_bytes(setup.limits.memory_bytes);
  report->set_limit_source(setup.limits.memory_source);
  report->set_host_bytes(is_host ? 0 : plan.HostBytes());
  report->set_fits(Fits(plan, setup.limits));
  for (const std::string& choice : DescribeChoices(plan)) report->add_choices(choice);
}

Report::Speed SpeedOf(const ScalePoint& point) {
  Report::Speed speed;
  speed.set_ranks(point.ranks);
  speed.set_step_seconds(point.step_seconds);
  speed.set_communication_seconds(point.communication_seconds);
  speed.set_tokens_per_second(point.tokens_per_second);
  speed.set_efficiency(point.efficiency);
  return speed;
}

void AddSpeed(const Setup& setup, const Plan& plan, Report* report) {
  const StepTime step = TimeOfStep(plan, setup.rates, setup.record.micro_batches);
  const Network network = NetworkOf(setup.job.plan());
  const int64_t tokens =
      setup.record.micro_batches * setup.record.passes * setup.record.train.tokens;
  const ScalePoint point =
      PredictStep(setup.world(), step.seconds, double(tokens), step.traffic, network);
  Report::Time* time = report->mutable_time();
  *time->mutable_speed() = SpeedOf(point);
  time->set_compute_seconds(step.seconds - step.memory_seconds - step.link_seconds);
  time->set_memory_seconds(step.memory_seconds);
  time->set_link_seconds(step.link_seconds);
  const std::pair<double, const char*> parts[] = {{time->compute_seconds(), "compute"},
                                                  {time->memory_seconds(), "memory"},
                                                  {time->link_seconds(), "host link"},
                                                  {point.communication_seconds, "communication"}};
  time->set_bound(std::max_element(std::begin(parts), std::end(parts))->second);
  constexpr double kMostTokens = 9e18;
  time->set_tokens_per_step(int64_t(std::min(double(tokens) * setup.world(), kMostTokens)));
  time->set_flops_per_second(setup.rates.matmul_flops);
  time->set_memory_bytes_per_second(setup.rates.memory_bytes);
  time->set_link_bytes_per_second(setup.rates.link_bytes);
  time->set_rates_source(setup.rates_source);
  if (report->adapters() > 1) return;  // on one rank, always
  for (const ScalePoint& other : PredictScaling(step.seconds, double(tokens), step.traffic,
                                                std::max(setup.world(), kMostRanks), network)) {
    *report->add_scaling() = SpeedOf(other);
  }
}

// How long the data of all adapters takes.
void AddDuration(const PlannedRun& run, Report::Time* time) {
  double run_tokens = 0;
  for (const Setup* setup : run.setups) {
    if (!setup->train_batches.has_value()) continue;
    const int64_t tokens = setup->train_data.report.tokens;
    time->set_tokens_per_epoch(time->tokens_per_epoch() + tokens);
    run_tokens += double(tokens) * setup->train_batches->EpochAt(setup->total_steps);
  }
  const double rate = time->speed().tokens_per_second();
  time->set_epoch_seconds(double(time->tokens_per_epoch()) / rate);
  time->set_run_seconds(run_tokens / rate);
}

// What training takes if this prediction is off by as much as the past ones.
void AddPast(const std::vector<proto::SpeedRecord>& past_runs, Report::Economics* economics) {
  if (past_runs.empty()) return;
  const double ratio = MeanRatio(past_runs);
  economics->set_training_hours_by_past(economics->training_hours() * ratio);
  economics->set_training_cost_by_past(economics->training_cost() * ratio);
}

void Explore(const PlannedRun& run, Report* report) {
  const Setup& setup = run.setup();
  const int64_t rows = setup.job.training().per_device_train_batch_size();
  const int64_t length = setup.job.data().max_length();
  const int64_t longest =
      std::min(setup.spec.max_positions, proto::FindIntRange("data.max_length")->max);
  report->set_most_tokens(longest);
  report->set_largest_sequence(
      LargestSequence(setup.spec, setup.record, *setup.device, setup.limits, rows, longest));
  report->set_largest_batch(
      LargestBatch(setup.spec, setup.record, *setup.device, setup.limits, length, kMostRows));
  report->set_rows_of_tokens(length);
  if (report->fits()) return;
  for (const PlanChange& change :
       FittingChanges(setup.spec, setup.record, *setup.device, setup.rates, setup.limits,
                      NetworkOf(setup.job.plan()))) {
    Report::Alternative* entry = report->add_changes();
    entry->set_change(change.change);
    entry->set_fits(true);
    entry->set_device_bytes(change.bytes);
    entry->set_relative_time(change.relative_time);
  }
}

}  // namespace

absl::StatusOr<Report> MakePlanReport(const PlannedRun& run, const Plan& plan,
                                      const std::vector<proto::SpeedRecord>& past_runs) {
  const Setup& setup = run.setup();
  Report report;
  report.set_engine_version(kEngineVersion);
  report.set_model(setup.job.has_model() ? setup.job.model() : setup.config_file);
  report.set_parameters(ParameterCount(setup.spec));
  report.set_mode(proto::Mode::Value_Name(setup.job.mode()));
  report.set_device(setup.device->info().name);
  report.set_adapters(int32_t(run.setups.size()));
  AddMemory(setup, plan, &report);
  AddSpeed(setup, plan, &report);
  AddDuration(run, report.mutable_time());
  *report.mutable_time()->mutable_past_runs() = {past_runs.begin(), past_runs.end()};
  report.mutable_time()->set_past_error(MeanError(past_runs));
  const bool explore = setup.job.plan().explore();
  if (explore) Explore(run, &report);
  absl::StatusOr<Report::Economics> economics =
      ReckonEconomics(run, plan, report.time().run_seconds(), explore);
  if (!economics.ok()) return economics.status();
  *report.mutable_economics() = *std::move(economics);
  AddPast(past_runs, report.mutable_economics());
  return report;
}

}  // namespace qlora::engine
