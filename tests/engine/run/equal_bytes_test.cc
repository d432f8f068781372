// The same steps give the same bytes: on another device, with other threads, with anything
// recomputed, after a restart from a checkpoint.

#include "absl/strings/str_join.h"
#include "engine/checkpoint/checkpoint.h"
#include "gtest/gtest.h"
#include "tests/engine/io/temp_folder.h"
#include "tests/engine/model/golden_files.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/deferred_device.h"
#include "tests/support/thread_ranks.h"

namespace qlora::engine {
namespace {

using kernels::optest::DeferredDevice;

constexpr int64_t kRows = 1, kMicroBatches = 4, kSteps = 3;

struct Case {
  RunKind kind;
  bool tree = true;
  float dropout = 0.25f;
};

class EqualBytes : public testing::TestWithParam<Case> {
 protected:
  EqualBytes() : data_(GoldenDocuments("qlora_llama")) {}

  ModelRun::Options Options(proto::Recompute::Value recompute = proto::Recompute::NONE) {
    const Case& c = GetParam();
    RecordOptions record = TrainingOptions(c.kind, data_, kRows, kMicroBatches);
    for (LoraTargets& lora : record.storage.lora) lora.dropout = c.dropout;
    record.storage.weight_decay = 0.1f;
    if (!c.tree) record.storage.pending_gradients = 0;
    return {.model = c.kind.model, .record = record, .recompute = recompute};
  }

  struct Outcome {
    std::string state;
    std::vector<double> losses;
    bool operator==(const Outcome&) const = default;
  };
  Outcome Train(ModelRun* run, int64_t steps = kSteps, int64_t first = 0) {
    Outcome outcome;
    for (const StepResult& step : RunSteps(run, data_, kRows, kMicroBatches, steps, first)) {
      EXPECT_FALSE(step.skipped);
      outcome.losses.push_back(step.loss_sum);
    }
    outcome.state = run->StateBytes();
    return outcome;
  }
  Outcome OnOneThread() {
    ModelRun run(Options(), CpuDevice(1));
    const std::string before = run.StateBytes();
    Outcome outcome = Train(&run);
    EXPECT_NE(outcome.state, before) << "nothing was trained";
    return outcome;
  }

  Dataset data_;
};

// The thin slice: recorder, plan, update on a device that runs late, in any order that the ops'
// operands allow, in memory that the host can't reach.
TEST_P(EqualBytes, OnADeferredDevice) {
  const Outcome expected = OnOneThread();
  for (const uint64_t seed : {1, 2}) {
    auto device = std::make_unique<DeferredDevice>(CpuDevice(1),
                                                   kernels::optest::DeferredOptions{.seed = seed});
    const DeferredDevice& deferred = *device;
    ModelRun run(Options(), std::move(device));
    EXPECT_TRUE(Train(&run) == expected) << "seed " << seed;
    EXPECT_GT(deferred.overtakings(), 10);
  }
}

TEST_P(EqualBytes, WithAnyNumberOfThreads) {
  const Outcome expected = OnOneThread();
  for (const int threads : {2, 3, 7}) {
    ModelRun run(Options(), CpuDevice(threads));
    EXPECT_TRUE(Train(&run) == expected) << threads << " threads";
  }
}

// One rank with four micro-batches, two with two each, four with one.
TEST_P(EqualBytes, WithAnyPowerOfTwoOfRanks) {
  if (!GetParam().tree) return;  // promised for one number of ranks only
  const Outcome expected = OnOneThread();
  for (const int size : {2, 4}) {
    ModelRun::Options options = Options();
    options.record.storage.ranks = size;
    options.record.least_part_bytes = 4 << 10;
    options.record.storage.pending_gradients = PendingGradients(kMicroBatches / size);
    std::vector<Outcome> outcomes(size);
    tests::OnRanks(
        size, {}, [](int) { return CpuDevice(1); },
        [&](Ranks& ranks, kernels::Device*) {
          ModelRun run(options, CpuDevice(1));
          EXPECT_GT(run.plan().run.train->gradient_parts.size(), 2u);
          Outcome& outcome = outcomes[ranks.rank()];
          for (const StepResult& step :
               RunSteps(&run, data_, kRows, kMicroBatches, kSteps, 0, &ranks)) {
            outcome.losses.push_back(step.loss_sum);
          }
          outcome.state = run.StateBytes();
        });
    for (int rank = 0; rank < size; ++rank) {
      EXPECT_TRUE(outcomes[rank] == expected) << "rank " << rank << " of " << size;
    }
  }
}

TEST_P(EqualBytes, WithEverythingRecomputed) {
  const Outcome expected = OnOneThread();
  ModelRun run(Options(proto::Recompute::FULL), CpuDevice(1));
  EXPECT_GT(run.plan().recompute_cost.ops, 0);
  EXPECT_TRUE(Train(&run) == expected);
}

// Every level and layer that the plan may choose, by limits that leave less and less.
TEST_P(EqualBytes, WithAsMuchRecomputedAsTheMemoryAsks) {
  const Outcome expected = OnOneThread();
  ModelRun all(Options(proto::Recompute::FULL), CpuDevice(1));
  ModelRun none(Options(), CpuDevice(1));
  ASSERT_LT(all.plan().total_bytes, none.plan().total_bytes);
  int64_t limit = none.plan().total_bytes - 1;
  int64_t tried = 0;
  while (limit >= all.plan().total_bytes) {
    ModelRun::Options options = Options(proto::Recompute::AUTO);
    options.memory_limit = limit;
    ModelRun run(options, CpuDevice(1));
    ASSERT_LE(run.plan().total_bytes, limit);
    EXPECT_TRUE(Train(&run) == expected)
        << Describe(run.plan().recompute, run.storage().spec.layers);
    limit = run.plan().total_bytes - 1;
    ++tried;
  }
  EXPECT_GE(tried, 2);
}

// Any share of the optimizer states on the device, and a checkpoint taken and read while the others
// are out.
TEST_P(EqualBytes, WithAnyBudgetOfPagedStates) {
  const Outcome expected = OnOneThread();
  const int64_t window = 4096;
  for (const int64_t places : {0, 1, 2, 5, 1000}) {
    for (const bool deferred : {false, true}) {
      const bool lend = places % 2 == 1;
      ModelRun::Options options = Options();
      options.paging = {.allowed = true,
                        .budget_bytes = places * window,
                        .may_lend = lend,
                        .window_bytes = window,
                        .folder = testing::TempDir()};
      std::unique_ptr<kernels::Device> device = CpuDevice(1);
      DeferredDevice* late = nullptr;
      if (deferred) {
        auto wrapped = std::make_unique<DeferredDevice>(
            std::move(device), kernels::optest::DeferredOptions{.seed = uint64_t(places + 1)});
        late = wrapped.get();
        device = std::move(wrapped);
      }
      ModelRun run(options, std::move(device));
      const kernels::PagedShape& shape = run.plan().paging;
      ASSERT_GT(shape.windows, 6);
      EXPECT_EQ(shape.IsLent(), lend);
      EXPECT_LE(shape.MostBytesThere(),
                std::min(shape.TotalBytes(), std::max<int64_t>(places, deferred ? 0 : 1) * window));
      EXPECT_TRUE(Train(&run) == expected) << places << " windows, deferred " << deferred;
      if (late == nullptr) continue;
      // The first sweep fills the slots; each brings and evicts what has no place.
      const int64_t stay = lend ? 0 : shape.slots;
      const int64_t rest = shape.slots == 0 ? 0 : shape.windows - shape.resident - stay;
      EXPECT_EQ(late->moved_out(), kSteps * rest * window);
      EXPECT_EQ(late->moved_in(), (kSteps * rest + stay) * window);
    }
  }
}

// States pass through what activations leave free; first some of them, then, with the least memory
// that nothing recomputed can do with, all. An evaluation between steps wants the memory back too.
TEST_P(EqualBytes, WithStatesInMemoryThatActivationsLend) {
  const Outcome expected = OnOneThread();
  ModelRun::Options options = Options();
  options.record.eval = options.record.train;
  options.paging = {.allowed = true, .window_bytes = 4096, .folder = testing::TempDir()};
  options.memory_limit = ModelRun(options, CpuDevice(1)).plan().total_bytes - 1;
  for (const bool all : {false, true}) {
    ModelRun run(options, std::make_unique<DeferredDevice>(
                              CpuDevice(1), kernels::optest::DeferredOptions{.seed = 7}));
    const kernels::PagedShape& shape = run.plan().paging;
    ASSERT_TRUE(shape.IsLent());
    EXPECT_EQ(shape.resident == 0, all);
    Outcome outcome;
    for (int64_t step = 0; step < kSteps; ++step) {
      ASSERT_TRUE(run.execution().Run(run.plan().run.eval->forward).ok());
      const Outcome next = Train(&run, 1, step);
      outcome.losses.push_back(next.losses[0]);
      outcome.state = next.state;
    }
    EXPECT_TRUE(outcome == expected) << absl::StrJoin(DescribeChoices(run.plan()), "; ");
    options.memory_limit = run.plan().total_bytes - shape.resident * shape.window_bytes;
  }
}

// Saved with all states in memory, read back into windows of which two are.
TEST_P(EqualBytes, AfterARestart) {
  const Outcome expected = OnOneThread();
  const tests::TempFolder folder;
  proto::RunState state;
  state.set_step(1);
  {
    ModelRun run(Options(), CpuDevice(1));
    Train(&run, 1);
    const absl::Status saved = SaveCheckpoint(
        Env::Default(), folder.path(), &run.execution(),
        {.adapter = {.r = 4, .lora_alpha = 8, .target_modules = {"q_proj"}},
         .config_file = GoldenModelPath(std::string(GetParam().kind.model) + "/config.json")},
        state);
    ASSERT_TRUE(saved.ok()) << saved;
  }
  ModelRun::Options options = Options();
  options.seed = 99;  // what it starts from must not matter
  options.paging = {.allowed = true,
                    .budget_bytes = 2 * 4096,
                    .window_bytes = 4096,
                    .folder = testing::TempDir()};
  ModelRun run(options, CpuDevice(1));
  const auto loaded = LoadCheckpoint(Env::Default(), folder.File("checkpoint-1"), &run.execution());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->step(), 1);
  const Outcome rest = Train(&run, kSteps - 1, 1);
  EXPECT_TRUE(rest.state == expected.state);
}

// A deep model on a device with a host beside it, with less and less memory, until the inputs of
// all layers but the last wait in host memory.
TEST(EqualBytesOffloaded, WithAnyNumberOfLayerInputsInHostMemory) {
  constexpr int64_t kLayers = 7;
  const Dataset data = GoldenDocuments("qlora_llama");
  ModelRun::Options options{.model = "llama3_tied",
                            .record = TrainingOptions("llama3_tied", data, kRows, 2),
                            .random_layers = kLayers};
  options.record.storage.mode = proto::Mode::FULL;
  options.record.storage.lora = {};
  const auto losses = [&](ModelRun* run) {
    std::vector<double> result;
    for (const StepResult& step : RunSteps(run, data, kRows, 2, 2)) result.push_back(step.loss_sum);
    return result;
  };
  ModelRun whole(options, CpuDevice(1));
  const std::vector<double> expected = losses(&whole);
  options.recompute = proto::Recompute::FULL;
  options.may_offload = true;
  int64_t most = 0;
  for (uint64_t seed = 1;; ++seed) {
    auto device = std::make_unique<DeferredDevice>(CpuDevice(1),
                                                   kernels::optest::DeferredOptions{.seed = seed});
    const DeferredDevice& deferred = *device;
    ModelRun run(options, std::move(device));
    EXPECT_EQ(losses(&run), expected) << seed;
    EXPECT_TRUE(run.StateBytes() == whole.StateBytes()) << seed;
    const int64_t offloaded = run.plan().recompute.offloaded_layers;
    // Two stay in their slots; the others go and come back once in each micro-batch.
    const int64_t moved = offloaded == 0 ? 0 : offloaded - kOffloadSlots;
    EXPECT_EQ(deferred.moved_out(), 4 * moved * run.plan().offloaded.shape.window_bytes);
    EXPECT_EQ(deferred.moved_in(), deferred.moved_out());
    most = offloaded;
    if (offloaded == kLayers) break;
    options.memory_limit = run.plan().total_bytes - 1;
  }
  EXPECT_EQ(most, kLayers);
}

INSTANTIATE_TEST_SUITE_P(
    Runs, EqualBytes,
    testing::Values(
        Case{{"qlora", "llama3_tied"}},
        Case{{.name = "qlora_fp32", .model = "qwen3", .compute = kernels::DType::kF32}},
        Case{{.name = "qlora_8bit_states", .model = "mistral", .eight_bit_states = true}},
        Case{.kind = {"qlora_biases", "llama_bias"}, .tree = false, .dropout = 0},
        Case{{.name = "lora", .model = "qwen2_window", .mode = proto::Mode::LORA}},
        Case{{.name = "full", .model = "qwen3", .mode = proto::Mode::FULL}},
        Case{{.name = "full_tied", .model = "llama3_tied", .mode = proto::Mode::FULL}}),
    [](const auto& info) { return std::string(info.param.kind.name); });

}  // namespace
}  // namespace qlora::engine
