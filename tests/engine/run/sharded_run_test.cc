// Optimizer states and frozen weights shared out over ranks: the same bytes as on one rank, each at
// the rank whose share it is; also where states are paged, and from checkpoints of any number of
// ranks. One rank reads the model for all.

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/state_file.h"
#include "engine/model/config_reader.h"
#include "engine/model/families.h"
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
  RunKind kind;
  bool paged = false;
  proto::Recompute::Value recompute = proto::Recompute::NONE;
};

// How the ranks of a run share things out.
struct Sharing {
  int ranks = 1;
  bool states = false, base = false;
  bool uneven = false;  // every other rank has memory for less, and recomputes all it can
};

class ShardedRun : public testing::TestWithParam<Case> {
 protected:
  ShardedRun() : data_(GoldenDocuments("qlora_llama")) {}

  ModelRun::Options Options(const Sharing& sharing, int rank) const {
    const Case& c = GetParam();
    RecordOptions record = TrainingOptions(c.kind, data_, kRows, kMicroBatches / sharing.ranks);
    StorageOptions& storage = record.storage;
    if (!storage.lora.empty()) {
      const ModelSpec spec = *ReadModelConfig(Env::Default(), GoldenModelPath(c.kind.model));
      storage.lora = {AllLinears(spec, kRank, 8, false)};
    }
    storage.weight_decay = 0.1f;
    storage.ranks = sharing.ranks;
    storage.rank = rank;
    storage.shard_states = sharing.states;
    storage.shard_base = sharing.base;
    record.least_part_bytes = 16 << 10;
    ModelRun::Options options{.model = c.kind.model, .record = record, .recompute = c.recompute};
    if (sharing.uneven && rank % 2 == 1) options.recompute = proto::Recompute::FULL;
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
  Outcome Train(const Sharing& sharing, int64_t first, int64_t steps, const std::string& from = "",
                const std::string& to = "") const {
    const int size = sharing.ranks;
    if (size == 1) return TrainAlone(first, steps, from, to);
    std::vector<Outcome> outcomes(size);
    tests::OnRanks(
        size, {}, [](int) { return CpuDevice(1); },
        [&](Ranks& ranks, kernels::Device* device) {
          ModelRun run(Options(sharing, ranks.rank()), CpuDevice(1), &ranks);
          // A tiny model's weights are not enough for four.
          if (GetParam().kind.mode != proto::Mode::FULL) {
            EXPECT_FALSE(run.storage().windows.empty());
          }
          EXPECT_EQ(run.storage().gathered.empty(), !sharing.base);
          Execution* const execution = &run.execution();
          if (!from.empty()) {
            const auto loaded = LoadCheckpoint(Env::Default(), from, execution);
            ASSERT_TRUE(loaded.ok()) << loaded.status();
          }
          outcomes[ranks.rank()] = StepsOn(&run, first, steps, &ranks);
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
      for (auto& [field, bytes] : outcome.states) {
        if (sharing.states) {
          all.states[field] += bytes;
        } else {
          EXPECT_TRUE(all.states[field] == bytes) << "rank " << rank;
        }
      }
    }
    return all;
  }

  Outcome TrainAlone(int64_t first, int64_t steps, const std::string& from,
                     const std::string& to) const {
    ModelRun run(Options({}, 0), CpuDevice(1));
    Execution* const execution = &run.execution();
    EXPECT_TRUE(from.empty() || LoadCheckpoint(Env::Default(), from, execution).ok());
    const Outcome outcome = StepsOn(&run, first, steps, nullptr);
    EXPECT_TRUE(to.empty() || Save(to, first + steps, execution, nullptr).ok());
    return outcome;
  }

  static absl::Status Save(const std::string& folder, int64_t step, Execution* execution,
                           HostExchange* exchange) {
    proto::RunState state;
    state.set_step(step);
    return SaveCheckpoint(
        Env::Default(), folder, execution,
        {.adapter = {.r = kRank, .lora_alpha = 8, .target_modules = {"q_proj"}},
         .config_file = GoldenModelPath(std::string(GetParam().kind.model) + "/config.json")},
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

TEST_P(ShardedRun, GivesTheBytesOfOneRank) {
  const Outcome expected = Train({}, 0, kSteps);
  for (const int ranks : {2, 4}) {
    for (const bool states : {false, true}) {
      for (const bool base : {false, true}) {
        if (base && GetParam().kind.mode == proto::Mode::FULL) continue;  // nothing is frozen
        EXPECT_TRUE(Train({ranks, states, base}, 0, kSteps) == expected)
            << ranks << " ranks, states " << states << ", base " << base;
      }
    }
  }
}

// The order in which ranks exchange what does not tell what each of them recomputes.
TEST_P(ShardedRun, EachRankMayRecomputeSomethingElse) {
  if (GetParam().kind.mode == proto::Mode::FULL) return;  // nothing is gathered
  const Outcome expected = Train({}, 0, kSteps);
  EXPECT_TRUE(Train({.ranks = 2, .base = true, .uneven = true}, 0, kSteps) == expected);
}

TEST_P(ShardedRun, GoesOnUponAnotherNumberOfRanks) {
  const Outcome expected = Train({}, 0, kSteps);
  const tests::TempFolder folder;
  const bool base = GetParam().kind.mode != proto::Mode::FULL;
  const Sharing one, two = {2, true, base}, four = {4, true, base}, four_whole = {4};
  for (const auto& [before, after] :
       {std::pair{two, one}, {one, four}, {four, two}, {two, four_whole}}) {
    const std::string own = folder.File(absl::StrCat(before.ranks, "_", after.ranks, after.states));
    ASSERT_TRUE(Env::Default()->CreateFolders(own).ok());
    Train(before, 0, 1, "", own);
    const Outcome rest = Train(after, 1, kSteps - 1, JoinPath(own, "checkpoint-1"));
    EXPECT_EQ(rest.trained, expected.trained) << before.ranks << " to " << after.ranks;
    EXPECT_EQ(rest.states, expected.states) << before.ranks << " to " << after.ranks;
  }
}

// All ranks together have everything once, each its part, and the plan says so.
TEST_P(ShardedRun, TakesItsShareOfMemory) {
  const std::unique_ptr<kernels::Device> device = CpuDevice();
  const ModelSpec spec = *ReadModelConfig(Env::Default(), GoldenModelPath(GetParam().kind.model));
  struct Bytes {
    int64_t states = 0, base = 0;
  };
  const auto bytes_of = [&](const Sharing& sharing, int rank) {
    const RecordedRun run = Record(spec, Options(sharing, rank).record, *device);
    Bytes bytes;
    for (const StateWindow& window : run.storage.windows) bytes.states += window.m.Extent();
    for (const GatheredGroup& group : run.storage.gathered) bytes.base += group.share.Extent();
    if (run.storage.gathered.empty()) {
      for (const WeightSlot& slot : run.storage.weights) {
        for (const kernels::Tensor& part : {slot.quantized.codes, slot.quantized.absmax,
                                            slot.quantized.nested_absmax, slot.quantized.offset}) {
          bytes.base += kernels::BufferBytes(part.Extent());
        }
        if (slot.frozen.rows > 1) bytes.base += kernels::BufferBytes(slot.frozen.Extent());
      }
    }
    return bytes;
  };
  const bool base = GetParam().kind.mode != proto::Mode::FULL;
  const Bytes all = bytes_of({}, 0);
  Bytes sum;
  for (int rank = 0; rank < 4; ++rank) {
    const Bytes own = bytes_of({4, true, base}, rank);
    sum.states += own.states;
    sum.base += own.base;
    if (base) {
      EXPECT_NEAR(double(own.base), double(all.base) / 4, 0.05 * double(all.base));
    }
  }
  EXPECT_EQ(sum.states, all.states);
  EXPECT_EQ(sum.base, all.base);
  EXPECT_LT(bytes_of({2, true, base}, 0).states, all.states);
}

INSTANTIATE_TEST_SUITE_P(
    Runs, ShardedRun,
    testing::Values(
        Case{{"qlora", "llama3_tied"}}, Case{.kind = {"qlora_paged", "llama3_tied"}, .paged = true},
        Case{.kind = {.name = "qlora_fp32_recomputed",
                      .model = "qwen3",
                      .compute = kernels::DType::kF32},
             .recompute = proto::Recompute::FULL},
        Case{{.name = "qlora_8bit_states", .model = "mistral", .eight_bit_states = true}},
        Case{.kind = {.name = "lora_8bit_paged",
                      .model = "qwen2_window",
                      .mode = proto::Mode::LORA,
                      .eight_bit_states = true},
             .paged = true},
        Case{{.name = "full", .model = "qwen3", .mode = proto::Mode::FULL}}),
    [](const auto& info) { return std::string(info.param.kind.name); });

}  // namespace
}  // namespace qlora::engine
