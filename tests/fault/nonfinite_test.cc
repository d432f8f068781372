// NaN and infinity, written into a step's values behind one of its ops: found in the same step, on
// all ranks alike, and never saved.
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/checkpoint/checkpoint.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/faulty_env.h"
#include "tests/support/forwarding_device.h"
#include "tests/support/thread_ranks.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using kernels::Op;
using kernels::Tensor;

constexpr char kModel[] = "llama3_tied";

// Writes `value` into the first element of what the first op of that name in a piece writes first,
// while `armed`.
struct Injection {
  std::string op;
  float value = 0;
  bool armed = false;
};

void Overwrite(const Tensor& view, float value) {
  if (view.dtype == DType::kF64) {
    const double wide = value;
    std::memcpy(view.data, &wide, sizeof(wide));
  } else if (view.dtype == DType::kF32) {
    std::memcpy(view.data, &value, sizeof(value));
  } else {
    uint32_t bits;  // bf16: the upper half
    std::memcpy(&bits, &value, sizeof(bits));
    const uint16_t half = uint16_t(bits >> 16);
    std::memcpy(view.data, &half, sizeof(half));
  }
}

class InjectingDevice : public kernels::optest::ForwardingDevice {
 public:
  InjectingDevice(std::unique_ptr<Device> inner, const Injection* injection)
      : ForwardingDevice(std::move(inner)), injection_(*injection) {}

  absl::StatusOr<std::unique_ptr<kernels::Piece>> Prepare(std::vector<Op> ops) override {
    const auto site = std::find_if(
        ops.begin(), ops.end(), [&](const Op& op) { return kernels::NameOf(op) == injection_.op; });
    if (site == ops.end()) return ForwardingDevice::Prepare(std::move(ops));
    Tensor target;
    kernels::VisitTensors(*site, [&](const char*, auto& view) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(view)>, Tensor>) {
        if (view && !target) target = view;
      }
    });
    auto piece = std::make_unique<SplitPiece>(this, target);
    auto before = ForwardingDevice::Prepare({ops.begin(), site + 1});
    auto after = ForwardingDevice::Prepare({site + 1, ops.end()});
    if (!before.ok()) return before.status();
    if (!after.ok()) return after.status();
    piece->before = *std::move(before);
    piece->after = *std::move(after);
    return std::unique_ptr<kernels::Piece>(std::move(piece));
  }

 private:
  struct SplitPiece : kernels::Piece {
    SplitPiece(InjectingDevice* device, Tensor target) : device(*device), target(target) {}
    absl::Status Run() override {
      absl::Status status = before->Run();
      if (status.ok()) status = device.Synchronize();
      if (status.ok() && device.injection_.armed) Overwrite(target, device.injection_.value);
      return status.ok() ? after->Run() : status;
    }
    InjectingDevice& device;
    const Tensor target;
    std::unique_ptr<kernels::Piece> before, after;
  };

  const Injection& injection_;
};

struct Site {
  const char* name;
  const char* op;
  const char* tensor;  // that it is written into
};
constexpr Site kSites[] = {
    {"activation", "rms_norm_forward", "layer 0 normed"},
    {"projection", "linear_forward", "layer 0 adapter product"},
    {"attention", "attention_forward", "layer 0 attention"},
    {"loss", "linear_cross_entropy", "loss"},
    {"gradient_of_activation", "linear_backward_input", "layer 1 adapter gradient"},
    {"gradient_of_adapter", "linear_backward_adapter",
     "the gradient of model.layers.1.mlp.down_proj.lora_A.weight"}};
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kValues[] = {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity};
constexpr float kBf16Max = 3.38953139e38f;

// What the run finds where that step was skipped.
std::string FirstBad(ModelRun* run, const Dataset& data, Ranks* ranks = nullptr) {
  const int64_t mine = 2 / (ranks == nullptr ? 1 : ranks->size());
  const Batcher batcher(&data,
                        {.rows_per_micro_batch = 1, .micro_batches_per_step = 2, .shuffle = false});
  const std::vector<MicroBatch> batch = batcher.Step(0);
  TrainStep step(&run->execution(), {.micro_batches = mine},
                 ranks == nullptr ? nullptr : &ranks->comm());
  const CourseStep course{.seed = 3};
  const auto first = step.FindNonFinite(
      absl::MakeConstSpan(&course, 1),
      [&](int64_t j, int64_t) -> absl::StatusOr<MicroBatchInputs> { return batch[j].inputs(); });
  EXPECT_TRUE(first.ok()) << first.status();
  return first.value_or("");
}

class NonFinite : public testing::TestWithParam<Site> {
 protected:
  NonFinite() : data_(GoldenDocuments(kModel)) { injection_.op = GetParam().op; }

  ModelRun::Options Options(int ranks = 1) const {
    ModelRun::Options options{.model = kModel, .record = TrainingOptions(kModel, data_, 1, 2)};
    options.record.storage.ranks = ranks;
    options.record.storage.pending_gradients = PendingGradients(2 / ranks);
    return options;
  }
  StepResult Step(ModelRun* run, int64_t step, Ranks* ranks = nullptr) const {
    return RunSteps(run, data_, 1, 2, 1, step, ranks).front();
  }
  // What is trained: without gradients, which a skipped step leaves as they came.
  static std::string Trained(ModelRun* run) {
    const Storage& s = run->storage();
    std::string bytes;
    for (const Tensor& view : {s.compute, s.windows[0].master, s.windows[0].m, s.windows[0].v}) {
      const auto part = run->Values<uint8_t>(view);
      bytes.append(part.begin(), part.end());
    }
    return bytes;
  }

  const Dataset data_;
  Injection injection_;
};

TEST_P(NonFinite, SkipsTheStepItComesInAndNothingElse) {
  ModelRun undisturbed(Options(), CpuDevice(1));
  ModelRun run(Options(), std::make_unique<InjectingDevice>(CpuDevice(1), &injection_));
  for (const float value : kValues) {
    injection_.value = value;
    const std::string before = Trained(&run);
    injection_.armed = true;
    EXPECT_TRUE(Step(&run, 0).skipped) << value;
    EXPECT_TRUE(Trained(&run) == before) << value;
    const char* const shown = std::isnan(value) ? "NaN" : value > 0 ? "infinity" : "-infinity";
    EXPECT_EQ(FirstBad(&run, data_),
              absl::StrCat(GetParam().tensor, " (", shown, " in row 0, column 0, written by ",
                           GetParam().op, ") in micro-batch 0"));
    EXPECT_TRUE(Trained(&run) == before) << value;
    injection_.armed = false;
    EXPECT_EQ(FirstBad(&run, data_), "");
  }
  EXPECT_FALSE(Step(&run, 0).skipped);
  EXPECT_FALSE(Step(&undisturbed, 0).skipped);
  EXPECT_TRUE(Trained(&run) == Trained(&undisturbed));
}

// Finite, but nothing that sums of squares survive everywhere: skipped, or all stays finite.
TEST_P(NonFinite, TheLargestValueDoesNotBecomeOneUnseen) {
  ModelRun run(Options(), std::make_unique<InjectingDevice>(CpuDevice(1), &injection_));
  injection_.value = kBf16Max;
  const std::string before = Trained(&run);
  injection_.armed = true;
  const bool skipped = Step(&run, 0).skipped;
  EXPECT_EQ(Trained(&run) == before, skipped);
  for (const float value : run.Values<float>(run.storage().windows[0].master)) {
    ASSERT_TRUE(std::isfinite(value));
  }
}

TEST_P(NonFinite, OnOneRankSkipsOnAll) {
  std::vector<StepResult> results(2);
  std::vector<std::string> after(2), first(2);
  injection_.value = kValues[0];
  injection_.armed = true;
  Injection none;
  tests::OnRanks(
      2, {}, [](int) { return CpuDevice(1); },
      [&](Ranks& ranks, kernels::Device*) {
        ModelRun run(Options(2), std::make_unique<InjectingDevice>(
                                     CpuDevice(1), ranks.rank() == 1 ? &injection_ : &none));
        results[ranks.rank()] = Step(&run, 0, &ranks);
        after[ranks.rank()] = Trained(&run);
        first[ranks.rank()] = FirstBad(&run, data_, &ranks);
      });
  EXPECT_TRUE(results[0].skipped && results[1].skipped);
  EXPECT_TRUE(after[0] == after[1]);
  EXPECT_EQ(first[0], "");
  EXPECT_THAT(first[1], testing::StartsWith(GetParam().tensor));
  EXPECT_THAT(first[1], testing::EndsWith("in micro-batch 1"));
}

INSTANTIATE_TEST_SUITE_P(Sites, NonFinite, testing::ValuesIn(kSites),
                         [](const auto& info) { return info.param.name; });

class NonFiniteState : public testing::TestWithParam<std::tuple<float, StateField>> {};

// A state that goes bad between steps spoils the update, or, where it is an infinite second moment,
// holds one parameter still for ever; neither is saved.
TEST_P(NonFiniteState, IsNeverSaved) {
  const Dataset data = GoldenDocuments(kModel);
  ModelRun run({.model = kModel, .record = TrainingOptions(kModel, data, 1, 1)}, CpuDevice(1));
  RunSteps(&run, data, 1, 1, 1);
  tests::FaultyEnv env;
  ASSERT_TRUE(env.CreateFolders("out").ok());
  const OutputFiles files{.adapter = {.r = 4, .lora_alpha = 8, .target_modules = {"q_proj"}}};
  proto::RunState state;
  state.set_step(1);
  ASSERT_TRUE(SaveCheckpoint(&env, "out", &run.execution(), files, state).ok());

  const auto& [bad, field] = GetParam();
  const Tensor& spoiled = run.storage().windows[0].Get(field);
  ASSERT_TRUE(run.execution().Write(spoiled, &bad, sizeof(bad)).ok());
  RunSteps(&run, data, 1, 1, 1, 1);
  state.set_step(2);
  const absl::Status saved = SaveCheckpoint(&env, "out", &run.execution(), files, state);
  EXPECT_EQ(proto::ExitCodeOf(saved), proto::kExitNumbersBad) << saved;
  EXPECT_THAT(std::string(saved.message()), testing::HasSubstr("holds NaN or infinity"));
  EXPECT_EQ(*env.List("out"), std::vector<std::string>{"checkpoint-1"});
}

INSTANTIATE_TEST_SUITE_P(Values, NonFiniteState,
                         testing::Combine(testing::ValuesIn(kValues),
                                          testing::Values(StateField::kMaster, StateField::kM,
                                                          StateField::kV)));

// A scale of the frozen base that is not finite makes every step's loss so, and is what is named.
TEST(NonFiniteBase, SkipsEveryStep) {
  const Dataset data = GoldenDocuments(kModel);
  ModelRun run({.model = kModel, .record = TrainingOptions(kModel, data, 1, 2)}, CpuDevice(1));
  std::string name;
  for (const WeightSlot& slot : run.storage().weights) {
    const Tensor scales =
        slot.quantized.nested_absmax ? slot.quantized.nested_absmax : slot.quantized.absmax;
    if (!scales) continue;
    ASSERT_TRUE(run.execution().Write(scales, &kValues[0], sizeof(float)).ok());
    name = slot.row.name;
    break;
  }
  for (const StepResult& step : RunSteps(&run, data, 1, 2, 3)) EXPECT_TRUE(step.skipped);
  EXPECT_THAT(FirstBad(&run, data),
              testing::MatchesRegex(name + ".* \\(NaN in row 0, column 0, read by linear_forward "
                                           "for layer 0 .*\\) in micro-batch 0"));
}

}  // namespace
}  // namespace qlora::engine
