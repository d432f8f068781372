#include "tests/engine/run/together_run.h"

#include <algorithm>
#include <limits>

#include "engine/data/join_batches.h"
#include "engine/io/env.h"
#include "engine/lora/targets.h"
#include "engine/model/families.h"
#include "engine/model/load_weights.h"
#include "gtest/gtest.h"
#include "tests/engine/model/golden_files.h"

namespace qlora::engine {
namespace {

constexpr int64_t kMicroBatches = 2;

Batcher BatcherOf(const Customer& customer) {
  return Batcher(
      &customer.data,
      {.rows_per_micro_batch = 1, .micro_batches_per_step = kMicroBatches, .seed = customer.seed});
}

LoraTargets TargetsOf(const ModelSpec& spec, const Customer& customer) {
  proto::Lora lora;
  lora.set_r(customer.r);
  lora.set_lora_alpha(8);
  lora.set_lora_dropout(customer.dropout);
  lora.set_allow_uneven_targets(true);
  for (const std::string& target : customer.targets) lora.add_target_modules(target);
  return *ResolveLoraTargets(lora, WeightRows(spec));
}

std::string StatesOf(ModelRun* run, int64_t course) {
  const Storage& s = run->storage();
  std::string bytes;
  const auto append = [&](const kernels::Tensor& view) {
    if (!view) return;
    const std::vector<uint8_t> part = run->Values<uint8_t>(view);
    bytes.append(part.begin(), part.end());
  };
  append(s.CourseView(course, s.compute));
  // Field by field, so that it does not matter how the states are cut into windows.
  for (const StateField field : kStateFields) {
    for (const StateWindow& window : s.windows) {
      if (window.course == course) append(window.Get(field));
    }
  }
  return bytes;
}

}  // namespace

std::vector<Customer> Customers() {
  const Dataset all = GoldenDocuments("qlora_llama");
  std::vector<Customer> customers = {
      {.r = 4, .targets = {"all-linear"}, .dropout = 0.25f, .learning_rate = 1e-3, .steps = 3},
      {.r = 2, .targets = {"q_proj", "v_proj"}, .dropout = 0, .learning_rate = 3e-3, .steps = 2},
      {.r = 8, .targets = {"all-linear"}, .dropout = 0.5f, .learning_rate = 1e-4, .steps = 3},
      {.r = 3,
       .targets = {"layers.1.mlp.down_proj", "layers.1.mlp.up_proj"},
       .dropout = 0.1f,
       .learning_rate = 2e-3,
       .steps = 1}};
  for (size_t i = 0; i < customers.size(); ++i) {
    Customer& customer = customers[i];
    customer.seed = 11 * i + 3;
    customer.data = all;
    auto& samples = customer.data.samples;
    std::rotate(samples.begin(), samples.begin() + i % samples.size(), samples.end());
    if (i > 0 && samples.size() > 2) samples.pop_back();
  }
  return customers;
}

std::vector<Left> TrainMembers(const TogetherCase& c, const std::vector<Customer>& customers,
                               const std::vector<size_t>& members,
                               std::unique_ptr<kernels::Device> device, int64_t poisoned) {
  const ModelSpec spec = *ReadModelConfig(Env::Default(), GoldenModelPath(c.model));
  RecordOptions record =
      TrainingOptions(c.model, customers[members.front()].data, 1, kMicroBatches);
  record.storage.mode = c.mode;
  record.storage.compute = c.compute;
  record.storage.eight_bit_states = c.eight_bit_states;
  record.storage.weight_decay = 0.1f;
  record.storage.lora.clear();
  record.train = {};
  record.passes = c.groups;
  const auto group_of = [&](size_t member) { return int64_t(member) % c.groups; };
  std::vector<Batcher> batchers;
  std::vector<BatchCapacity> capacities(c.groups);
  for (size_t m = 0; m < members.size(); ++m) {
    const Customer& customer = customers[members[m]];
    record.storage.lora.push_back(TargetsOf(spec, customer));
    const BatchCapacity own = batchers.emplace_back(BatcherOf(customer)).capacity();
    BatchCapacity& capacity = capacities[group_of(m)];
    capacity.tokens += own.tokens;
    capacity.documents += own.documents;
    capacity.trained_rows += own.trained_rows;
    record.train.tokens = std::max(record.train.tokens, capacity.tokens);
    record.train.documents = std::max(record.train.documents, capacity.documents);
    record.train.trained_rows = std::max(record.train.trained_rows, capacity.trained_rows);
  }
  ModelRun run({.model = c.model, .record = record, .paging = c.paging}, std::move(device));
  for (size_t m = 0; m < members.size(); ++m) {
    run.StartAdapter(int64_t(m), 100 + members[m]);
    if (int64_t(m) != poisoned) continue;
    const CourseRange& range = run.storage().courses[m];
    for (int64_t i = range.first_parameter; i < range.end_parameter; ++i) {
      const Parameter& parameter = run.storage().space.parameters()[i];
      const std::vector<float> bad(parameter.rows * parameter.cols,
                                   std::numeric_limits<float>::quiet_NaN());
      EXPECT_TRUE(WriteTrained(&run.execution(), i, bad).ok());
    }
  }

  TrainStep step(&run.execution(), {.micro_batches = kMicroBatches});
  std::vector<Left> left(members.size());
  for (int64_t n = 0;; ++n) {
    std::vector<CourseStep> steps;
    std::vector<std::vector<MicroBatch>> batches(members.size());
    for (size_t m = 0; m < members.size(); ++m) {
      const Customer& customer = customers[members[m]];
      CourseStep& own = steps.emplace_back();
      own.is_active = n < customer.steps;
      if (!own.is_active) continue;
      batches[m] = batchers[m].Step(n);
      own = {.group = group_of(m),
             .seed = customer.seed,
             .step = n,
             .updates = n,
             .learning_rate = customer.learning_rate,
             .trained_tokens = Batcher::TrainedTokens(batches[m])};
    }
    if (std::none_of(steps.begin(), steps.end(), [](const auto& s) { return s.is_active; })) break;
    JoinedBatch joined;
    const auto give = [&](int64_t j, int64_t group) -> absl::StatusOr<MicroBatchInputs> {
      std::vector<const MicroBatch*> parts;
      for (size_t m = 0; m < batches.size(); ++m) {
        const bool has_rows = steps[m].is_active && group_of(m) == group;
        parts.push_back(has_rows ? &batches[m][j] : nullptr);
      }
      joined = JoinBatches(parts);
      return joined.inputs();
    };
    const auto results = step.Run(steps, give);
    EXPECT_TRUE(results.ok()) << results.status();
    if (!results.ok()) return left;
    for (size_t m = 0; m < members.size(); ++m) {
      if (!steps[m].is_active) continue;
      left[m].losses.push_back((*results)[m].loss_sum);
      left[m].norms.push_back((*results)[m].gradient_norm);
      left[m].skips.push_back((*results)[m].skipped);
    }
  }
  for (size_t m = 0; m < members.size(); ++m) left[m].states = StatesOf(&run, int64_t(m));
  return left;
}

}  // namespace qlora::engine
