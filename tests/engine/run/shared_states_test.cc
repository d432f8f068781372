// Optimizer states shared out over ranks: the same bytes as on one rank, each at the rank whose
// share it is; also where they are paged, and from checkpoints of any number of ranks.

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint.h"
#include "engine/model/config_reader.h"
#include "engine/model/families.h"
#include "engine/optim/state_file.h"
#include "gtest/gtest.h"
#include "tests/engine/io/temp_folder.h"
#include "tests/engine/model/golden_files.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/thread_ranks.h"

namespace qlora::engine {
namespace {

constexpr int64_t kRows = 1, kMicroBatches = 4, kSteps = 3;
// Adapters large enough that each of four ranks has a share.
constexpr int kRank = 56;

struct Case {
  const char* name;
  const char* model;
  proto::Mode::Value mode = proto::Mode::QLORA;
  kernels::DType compute = kernels::DType::kBf16;
  bool eight_bit_states = false;
  bool paged = false;
};

class SharedStates : public testing::TestWithParam<Case> {
 protected:
  SharedStates() : data_(GoldenDocuments("qlora_llama")) {}

  ModelRun::Options Options(int ranks, int rank) const {
    const Case& c = GetParam();
    RecordOptions record = TrainingOptions(c.model, data_, kRows, kMicroBatches / ranks);
    const ModelSpec spec = *ReadModelConfig(Env::Default(), GoldenModelPath(c.model));
    StorageOptions& storage = record.storage;
    storage.mode = c.mode;
    storage.lora = {AllLinears(spec, kRank, 8, false)};
    if (c.mode == proto::Mode::FULL) storage.lora.clear();
    storage.compute = c.compute;
    storage.eight_bit_states = c.eight_bit_states;
    storage.weight_decay = 0.1f;
    storage.ranks = ranks;
    storage.rank = rank;
    storage.shard_states = ranks > 1;
    record.least_part_bytes = 16 << 10;
    ModelRun::Options options{.model = c.model, .record = record};
    if (c.paged) {
      options.paging = {.allowed = true,
                        .budget_bytes = 2 * 16384,
                        .window_bytes = 16384,
                        .folder = testing::TempDir()};
    }
    return options;
  }

  // What training leaves: losses and norms, what forward reads, and each state, of all ranks in
  // their order.
  struct Outcome {
    std::vector<double> losses, norms;
    std::string trained;
    std::map<StateField, std::string> states;
    bool operator==(const Outcome&) const = default;
  };
  static std::string Bytes(ModelRun* run, kernels::Tensor view) {
    const std::vector<uint8_t> bytes = run->Values<uint8_t>(view);
    return {bytes.begin(), bytes.end()};
  }

  // Trains on threads, one a rank. Begins with `from`, where given; saves to `to`.
  Outcome Train(int size, int64_t first, int64_t steps, const std::string& from = "",
                const std::string& to = "") const {
    std::vector<Outcome> outcomes(size);
    tests::OnRanks(
        size, {}, [](int) { return CpuDevice(1); },
        [&](Ranks& ranks, kernels::Device* device) {
          ModelRun run(Options(size, ranks.rank()), CpuDevice(1));
          // A tiny model's weights are not enough for four.
          if (GetParam().mode != proto::Mode::FULL) {
            EXPECT_FALSE(run.storage().windows.empty());
          }
          Execution* const execution = &run.execution();
          if (!from.empty()) {
            const auto loaded = LoadCheckpoint(Env::Default(), from, execution);
            ASSERT_TRUE(loaded.ok()) << loaded.status();
          }
          outcomes[ranks.rank()] = StepsOn(&run, first, steps, size == 1 ? nullptr : &ranks);
          if (to.empty()) return;
          HostExchange exchange(&ranks.comm(), device, nullptr, 0);
          const absl::Status saved = ranks.is_first()
                                         ? Save(to, first + steps, execution, &exchange)
                                         : SendStates(execution, &exchange);
          ASSERT_TRUE(saved.ok()) << saved;
        });
    Outcome all = outcomes[0];
    for (int rank = 1; rank < size; ++rank) {
      Outcome& outcome = outcomes[rank];
      EXPECT_EQ(outcome.losses, all.losses);
      EXPECT_EQ(outcome.norms, all.norms);
      EXPECT_TRUE(outcome.trained == all.trained) << "rank " << rank;
      for (auto& [field, bytes] : outcome.states) all.states[field] += bytes;
    }
    return all;
  }

  static absl::Status Save(const std::string& folder, int64_t step, Execution* execution,
                           HostExchange* exchange) {
    proto::RunState state;
    state.set_step(step);
    return SaveCheckpoint(
        Env::Default(), folder, execution,
        {.adapter = {.r = kRank, .lora_alpha = 8, .target_modules = {"q_proj"}},
         .config_file = GoldenModelPath(std::string(GetParam().model) + "/config.json")},
        state, exchange);
  }

  Outcome StepsOn(ModelRun* run, int64_t first, int64_t steps, Ranks* ranks) const {
    Outcome outcome;
    for (const StepResult& step : RunSteps(run, data_, kRows, kMicroBatches, steps, first, ranks)) {
      EXPECT_FALSE(step.skipped);
      outcome.losses.push_back(step.loss_sum);
      outcome.norms.push_back(step.gradient_norm);
    }
    outcome.trained = Bytes(run, run->storage().trained());
    for (const StateField field : kStateFields) {
      for (const StateWindow& window : run->storage().windows) {
        if (window.Get(field)) outcome.states[field] += Bytes(run, window.Get(field));
      }
    }
    return outcome;
  }

  const Dataset data_;
};

TEST_P(SharedStates, GiveTheBytesOfOneRank) {
  const Outcome expected = Train(1, 0, kSteps);
  for (const int size : {2, 4}) EXPECT_TRUE(Train(size, 0, kSteps) == expected) << size << " ranks";
}

TEST_P(SharedStates, GoOnUponAnotherNumberOfRanks) {
  const Outcome expected = Train(1, 0, kSteps);
  const tests::TempFolder folder;
  for (const auto& [before, after] : {std::pair{2, 1}, {1, 4}, {4, 2}}) {
    const std::string own = folder.File(absl::StrCat(before, "_", after));
    ASSERT_TRUE(Env::Default()->CreateFolders(own).ok());
    Train(before, 0, 1, "", own);
    const Outcome rest = Train(after, 1, kSteps - 1, JoinPath(own, "checkpoint-1"));
    EXPECT_EQ(rest.trained, expected.trained) << before << " to " << after;
    EXPECT_EQ(rest.states, expected.states) << before << " to " << after;
  }
}

TEST_P(SharedStates, TakeTheirShareOfMemory) {
  const std::unique_ptr<kernels::Device> device = CpuDevice();
  const ModelSpec spec = *ReadModelConfig(Env::Default(), GoldenModelPath(GetParam().model));
  const auto states = [&](int ranks, int rank) {
    const RecordedRun run = Record(spec, Options(ranks, rank).record, *device);
    int64_t bytes = 0;
    for (const StateWindow& window : run.storage.windows) bytes += window.m.Extent();
    return bytes;
  };
  const int64_t all = states(1, 0);
  int64_t sum = 0;
  for (int rank = 0; rank < 4; ++rank) sum += states(4, rank);
  EXPECT_EQ(sum, all);
  EXPECT_LT(states(2, 0), all);
}

INSTANTIATE_TEST_SUITE_P(
    Runs, SharedStates,
    testing::Values(Case{"qlora", "llama3_tied"},
                    Case{.name = "qlora_paged", .model = "llama3_tied", .paged = true},
                    Case{.name = "qlora_fp32", .model = "qwen3", .compute = kernels::DType::kF32},
                    Case{.name = "qlora_8bit_states", .model = "mistral", .eight_bit_states = true},
                    Case{.name = "lora_8bit_paged",
                         .model = "qwen2_window",
                         .mode = proto::Mode::LORA,
                         .eight_bit_states = true,
                         .paged = true},
                    Case{.name = "full", .model = "qwen3", .mode = proto::Mode::FULL}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace qlora::engine
