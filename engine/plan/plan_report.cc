#include "engine/plan/plan_report.h"

#include <algorithm>

#include "engine/io/json_file.h"
#include "engine/plan/economics.h"
#include "engine/plan/plan_changes.h"
#include "engine/plan/scaling.h"
#include "engine/report/sidecar.h"
#include "engine/version.h"

namespace qlora::engine {
namespace {

using Report = proto::PlanReport;

// Rows of a micro-batch that are looked at; more never pay.
constexpr int64_t kMostRows = 1024;
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
  const auto away = [](const kernels::PagedShape& shape) {
    return (shape.windows - shape.resident) * shape.window_bytes;
  };
  AddItem("optimizer states that are paged out", is_host ? "file" : "host", away(plan.paging),
          report);
  AddItem("layer inputs between forward and backward", "host", away(plan.offloaded.shape), report);
  report->set_device_bytes(plan.total_bytes);
  report->set_limit_bytes(setup.limits.memory_bytes);
  report->set_limit_source(setup.limits.memory_source);
  report->set_host_bytes(is_host ? 0 : plan.HostBytes());
  report->set_fits(Fits(plan, setup.limits));
  report->add_choices(Describe(plan.recompute, plan.run.storage.spec.layers));
  if (plan.paging.windows > 0) report->add_choices(DescribePaging(plan));
}

// Bytes that ranks sum after a step: the gradient and the loss.
double SummedBytes(const Plan& plan) {
  return 4.0 * double(plan.run.storage.space.size()) + sizeof(double);
}

void AddTime(const Setup& setup, const Plan& plan, Report* report) {
  const int64_t accumulation = setup.job.training().gradient_accumulation_steps();
  const Network network = {setup.job.plan().network_bytes_per_second(),
                           setup.job.plan().network_latency_seconds()};
  Report::Time* time = report->mutable_time();
  const double alone = StepSeconds(plan, accumulation);
  const double communication = SumSeconds(setup.world(), SummedBytes(plan), network);
  time->set_memory_seconds(double(accumulation) * plan.micro_batch_memory_seconds +
                           plan.update_seconds);
  time->set_compute_seconds(alone - time->memory_seconds());
  time->set_communication_seconds(communication);
  time->set_step_seconds(alone + communication);
  const double largest = std::max({time->compute_seconds(), time->memory_seconds(), communication});
  time->set_bound(largest == communication            ? "communication"
                  : largest == time->memory_seconds() ? "memory"
                                                      : "compute");
  const int64_t tokens = accumulation * setup.record.train.tokens;
  time->set_tokens_per_step(tokens * setup.world());
  time->set_tokens_per_second(double(time->tokens_per_step()) / time->step_seconds());
  if (setup.train_batches.has_value()) {
    time->set_tokens_per_epoch(setup.train_data.report.tokens);
    time->set_epoch_seconds(double(time->tokens_per_epoch()) / time->tokens_per_second());
    const double epochs = setup.train_batches->EpochAt(setup.total_steps);
    time->set_run_seconds(epochs * time->epoch_seconds());
  }
  time->set_flops_per_second(setup.rates.matmul_flops);
  time->set_memory_bytes_per_second(setup.rates.memory_bytes);
  time->set_rates_source(setup.rates_source);
  for (const ScalePoint& point : PredictScaling(alone, double(tokens), SummedBytes(plan),
                                                std::max(setup.world(), kMostRanks), network)) {
    Report::Scale* scale = report->add_scaling();
    scale->set_ranks(point.ranks);
    scale->set_step_seconds(point.step_seconds);
    scale->set_communication_seconds(point.communication_seconds);
    scale->set_tokens_per_second(point.tokens_per_second);
    scale->set_efficiency(point.efficiency);
  }
}

void Explore(const Setup& setup, Report* report) {
  const int64_t rows = setup.job.training().per_device_train_batch_size();
  const int64_t length = setup.job.data().max_length();
  report->set_largest_sequence(LargestSequence(setup.spec, setup.record, *setup.device,
                                               setup.limits, rows, setup.spec.max_positions));
  report->set_largest_batch(
      LargestBatch(setup.spec, setup.record, *setup.device, setup.limits, length, kMostRows));
  if (report->fits()) return;
  for (const PlanChange& change :
       FittingChanges(setup.spec, setup.record, *setup.device, setup.rates, setup.limits)) {
    Report::Change* entry = report->add_changes();
    entry->set_change(change.change);
    entry->set_bytes(change.bytes);
    entry->set_relative_time(change.relative_time);
  }
}

// What the run whose results lie in output_dir recorded, if it was on this device.
void AddRecorded(const Setup& setup, Report* report) {
  if (!setup.job.has_output_dir()) return;
  const auto json = ReadJsonFile(setup.env, JoinPath(setup.job.output_dir(), kSidecarFile));
  if (!json.ok() || !json->is_object()) return;
  const auto device = json->find("device");
  if (device == json->end() || *device != setup.device->info().name) return;
  // Whatever the file holds, it is only a figure to show.
  const auto number = [&](const char* key) {
    const auto it = json->find(key);
    return it != json->end() && it->is_number() ? it->get<double>() : 0.0;
  };
  const double measured = number("tokens_per_second");
  const double predicted = number("predicted_tokens_per_second");
  if (!(measured > 0 && predicted > 0)) return;
  Report::Recorded* recorded = report->mutable_recorded();
  recorded->set_tokens_per_second(measured);
  recorded->set_predicted_tokens_per_second(predicted);
  recorded->set_error(predicted / measured - 1);
}

}  // namespace

absl::StatusOr<Report> MakePlanReport(const Setup& setup, const Plan& plan) {
  Report report;
  report.set_engine_version(kEngineVersion);
  report.set_model(setup.job.has_model() ? setup.job.model() : setup.config_file);
  report.set_parameters(ParameterCount(setup.spec));
  report.set_mode(proto::Mode::Value_Name(setup.job.mode()));
  report.set_device(setup.device->info().name);
  report.set_world_size(setup.world());
  AddMemory(setup, plan, &report);
  AddTime(setup, plan, &report);
  AddRecorded(setup, &report);
  const bool explore = setup.job.plan().explore();
  if (explore) Explore(setup, &report);
  absl::StatusOr<Report::Economics> economics =
      ReckonEconomics(setup, report.time().run_seconds(), explore);
  if (!economics.ok()) return economics.status();
  *report.mutable_economics() = *std::move(economics);
  return report;
}

}  // namespace qlora::engine
