// Whole runs on the CUDA backend, on a card or under the SIMT executor, against the CPU backend:
// forward, backward and update of small models in every mode, evaluation, generation, and what must
// not change a byte.

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "engine/commands/evaluate.h"
#include "engine/commands/generate.h"
#include "engine/plan/rematerialize.h"
#include "gtest/gtest.h"
#include "tests/cuda/cuda_device.h"
#include "tests/engine/run/model_run.h"

namespace qlora::engine {
namespace {

using tests::CudaDevice;

constexpr int64_t kRows = 1, kMicroBatches = 2;

struct Case {
  RunKind kind;
  float dropout = 0;
  proto::KernelSelection::Value kernels = proto::KernelSelection::FUSED;
};

class CudaTraining : public testing::TestWithParam<Case> {
 protected:
  CudaTraining() : data_(GoldenDocuments("qlora_llama")) {}

  ModelRun::Options Options(proto::Recompute::Value recompute = proto::Recompute::NONE) {
    const Case& c = GetParam();
    RecordOptions record = TrainingOptions(c.kind, data_, kRows, kMicroBatches);
    for (LoraTargets& lora : record.storage.lora) lora.dropout = c.dropout;
    return {.model = c.kind.model, .record = record, .recompute = recompute, .kernels = c.kernels};
  }

  std::vector<double> Losses(ModelRun* run, int64_t steps) {
    std::vector<double> losses;
    for (const StepResult& step : RunSteps(run, data_, kRows, kMicroBatches, steps)) {
      EXPECT_FALSE(step.skipped);
      losses.push_back(step.loss_sum / double(step.trained_tokens));
    }
    return losses;
  }

  Dataset data_;
};

// ‖a − b‖ / ‖b‖.
double RelativeDistance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    norm += double(b[i]) * b[i];
  }
  return std::sqrt(difference / norm);
}

// The backends round at the same places and add in other orders. An fp32 sum over n terms differs
// by about √n·u(fp32); where the result lies close to the middle of two bf16 numbers, that moves it
// by one ulp, 2⁻⁸. Each such flip passes through `ops` roundings of forward and backward, random in
// sign: the distance stays below √ops times one ulp even if every element flips once.
double DistanceBound(kernels::DType compute, int64_t layers) {
  constexpr double kRoundingsPerLayer = 40;  // forward and backward, two recorded per linear
  const double roundings = kRoundingsPerLayer * double(layers + 1);
  return compute == kernels::DType::kF32 ? roundings * std::sqrt(64.0) * 0x1p-24
                                         : std::sqrt(roundings) * 0x1p-8;
}

TEST_P(CudaTraining, TheFirstStepIsTheCpusWithinTheBound) {
  ModelRun cpu(Options(), CpuDevice(2)), cuda(Options(), CudaDevice());
  const bool by_library = GetParam().kernels == proto::KernelSelection::DEQUANTIZED;
  int64_t library_ops = 0;
  for (const auto& op : cuda.plan().run.program.Ops()) {
    if (const auto* linear = std::get_if<kernels::LinearForward>(&op)) {
      library_ops += linear->variant == kernels::LinearVariant::kDequantized;
    }
  }
  EXPECT_EQ(library_ops > 10, by_library);
  const double expected = Losses(&cpu, 1)[0], found = Losses(&cuda, 1)[0];
  const double bound = DistanceBound(GetParam().kind.compute, cpu.storage().spec.layers);
  EXPECT_NEAR(found, expected, bound * expected);
  const auto gradient = [](ModelRun* run) { return run->Values<float>(run->storage().gradient); };
  const double distance = RelativeDistance(gradient(&cuda), gradient(&cpu));
  RecordProperty("gradient_distance_over_bound", std::to_string(distance / bound));
  EXPECT_LE(distance, bound);
}

// How many linear ops with adapters the library computes; each must have its tail behind its input.
int64_t CheckTails(const Program& program) {
  int64_t count = 0;
  const auto check = [&](const auto& op, const kernels::ConstTensor& input) {
    if (op.adapters.empty() || op.variant != kernels::LinearVariant::kDequantized) return;
    ++count;
    EXPECT_EQ(op.tail.cols, 16);
    EXPECT_EQ(op.tail.pitch, input.pitch);
    EXPECT_EQ(Program::IdOf(op.tail.data), Program::IdOf(input.data));
    EXPECT_EQ(Program::OffsetOf(op.tail.data),
              Program::OffsetOf(input.data) + input.cols * kernels::SizeOf(input.dtype));
  };
  for (const auto& op : program.Ops()) {
    if (const auto* o = std::get_if<kernels::LinearForward>(&op)) check(*o, o->x);
    if (const auto* o = std::get_if<kernels::LinearBackwardInput>(&op)) check(*o, o->dy);
  }
  return count;
}

// Adapters' products lie behind the activations, which nobody copies; what is computed again has
// its own, or the first one where its input is still there.
// Other kernels find no gaps between rows.
TEST_P(CudaTraining, TheLibrarysActivationsStayWhereTheyAre) {
  const ModelRun kept(Options(), CudaDevice());
  if (GetParam().kernels != proto::KernelSelection::DEQUANTIZED) {
    EXPECT_EQ(CheckTails(kept.plan().run.program), 0);
    for (const auto& op : kept.plan().run.program.Ops()) {
      if (const auto* o = std::get_if<kernels::LinearForward>(&op)) {
        EXPECT_EQ(o->x.pitch, o->x.cols);
      }
    }
    return;
  }
  const ModelRun recomputed(Options(proto::Recompute::FULL), CudaDevice());
  RecordedRun run = kept.plan().run;
  // Forward and backward of seven linears; the lowest layer's query, key and value need no dx.
  const int64_t all = 14 * run.storage.spec.layers - 3;
  EXPECT_GE(CheckTails(run.program), all);
  EXPECT_GT(CheckTails(recomputed.plan().run.program), all);
  absl::flat_hash_set<BufferId> gate_and_up;
  for (const auto& layer : run.train->recompute[1]) gate_and_up.insert(layer.begin(), layer.end());
  Rematerialize(&run.program, run.train->micro_batch, gate_and_up);
  EXPECT_EQ(CheckTails(run.program),
            CheckTails(kept.plan().run.program) + 2 * run.storage.spec.layers);
}

TEST_P(CudaTraining, TenStepsStayWithinHalfAPercent) {
  ModelRun cpu(Options(), CpuDevice(2)), cuda(Options(), CudaDevice());
  const std::vector<double> expected = Losses(&cpu, 10), found = Losses(&cuda, 10);
  for (int i = 0; i < 10; ++i) EXPECT_NEAR(found[i], expected[i], 0.005 * expected[i]) << i;
}

TEST_P(CudaTraining, CapturedRecomputedOrNotGivesTheSameBytes) {
  ModelRun captured(Options(), CudaDevice());
  ModelRun started(Options(), CudaDevice({.capture = false}));
  ModelRun recomputed(Options(proto::Recompute::FULL), CudaDevice());
  EXPECT_GT(recomputed.plan().recompute_cost.ops, 0);
  const std::string before = captured.StateBytes();
  const std::vector<double> losses = Losses(&captured, 2);
  EXPECT_NE(captured.StateBytes(), before) << "nothing was trained";
  EXPECT_EQ(Losses(&started, 2), losses);
  EXPECT_EQ(Losses(&recomputed, 2), losses);
  EXPECT_TRUE(started.StateBytes() == captured.StateBytes());
  EXPECT_TRUE(recomputed.StateBytes() == captured.StateBytes());
}

TEST_P(CudaTraining, AnyBudgetOfPagedStatesGivesTheSameBytes) {
  constexpr int64_t kWindow = 8192;
  ModelRun whole(Options(), CudaDevice());
  const std::vector<double> losses = Losses(&whole, 2);
  for (const int64_t places : {0, 5}) {
    ModelRun::Options options = Options();
    options.paging = {.allowed = true,
                      .budget_bytes = places * kWindow,
                      .may_lend = places == 5,
                      .window_bytes = kWindow,
                      .folder = ""};
    ModelRun paged(options, CudaDevice());
    ASSERT_GT(paged.plan().paging.windows, places);
    ASSERT_EQ(paged.plan().paging.MostBytesThere(), places * kWindow);
    ASSERT_EQ(paged.plan().paging.IsLent(), places == 5);
    EXPECT_EQ(Losses(&paged, 2), losses) << places;
    EXPECT_TRUE(paged.StateBytes() == whole.StateBytes()) << places;
  }
}

// A deep model whose layers' inputs pass through host memory between forward and backward.
TEST(CudaOffload, ChangesNoByte) {
  const Dataset data = GoldenDocuments("qlora_llama");
  ModelRun::Options options{
      .model = "qwen3", .record = TrainingOptions("qwen3", data, kRows, 2), .random_layers = 6};
  options.record.storage.mode = proto::Mode::FULL;
  options.record.storage.lora = {};
  options.recompute = proto::Recompute::FULL;
  ModelRun whole(options, CudaDevice());
  const auto expected = RunSteps(&whole, data, kRows, 2, 2);
  options.may_offload = true;
  options.memory_limit = whole.plan().total_bytes - 1;
  for (const bool capture : {true, false}) {
    ModelRun run(options, CudaDevice({.capture = capture}));
    ASSERT_GT(run.plan().offloaded.shape.windows, kOffloadSlots);
    const auto found = RunSteps(&run, data, kRows, 2, 2);
    for (size_t i = 0; i < found.size(); ++i) EXPECT_EQ(found[i].loss_sum, expected[i].loss_sum);
    EXPECT_TRUE(run.StateBytes() == whole.StateBytes());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Runs, CudaTraining,
    testing::Values(
        Case{{"qlora", "llama3_tied"}},
        Case{{.name = "qlora_fp32", .model = "qwen3", .compute = kernels::DType::kF32}},
        Case{.kind = {.name = "qlora_8bit_states_dropout",
                      .model = "mistral",
                      .eight_bit_states = true},
             .dropout = 0.25f},
        Case{.kind = {"qlora_dequantized", "llama3_tied"},
             .kernels = proto::KernelSelection::DEQUANTIZED},
        Case{.kind = {.name = "lora_dequantized", .model = "mistral", .mode = proto::Mode::LORA},
             .kernels = proto::KernelSelection::DEQUANTIZED},
        Case{{.name = "lora_biases", .model = "qwen2_window", .mode = proto::Mode::LORA}},
        Case{{.name = "full_tied", .model = "llama3_tied", .mode = proto::Mode::FULL}}),
    [](const auto& info) { return std::string(info.param.kind.name); });

class CudaInference : public testing::TestWithParam<const char*> {};

TEST_P(CudaInference, EvaluatesAndGeneratesAsTheCpuDoes) {
  constexpr int64_t kNewTokens = 8;
  const Dataset documents = GoldenDocuments(GetParam());
  std::vector<std::vector<int32_t>> prompts;
  for (const Sample& sample : documents.samples) prompts.push_back(sample.ids);
  const int64_t context = documents.report.longest + kNewTokens;
  RecordOptions record;
  record.storage.mode = proto::Mode::LORA;
  record.storage.compute = kernels::DType::kF32;
  record.storage.training = false;
  record.storage.rope_positions = context;
  record.generate = {.sequences = 2, .context = context, .prefill = 4};
  const Batcher batcher(&documents, {.shuffle = false});
  record.eval = batcher.capacity();
  ModelRun cpu({.model = GetParam(), .record = record}, CpuDevice());
  ModelRun cuda({.model = GetParam(), .record = record}, CudaDevice());
  const auto expected_loss = EvaluateLoss(&cpu.execution(), batcher, nullptr);
  const auto loss = EvaluateLoss(&cuda.execution(), batcher, nullptr);
  ASSERT_TRUE(loss.ok()) << loss.status();
  EXPECT_NEAR(loss->Loss(), expected_loss->Loss(), 1e-5 * expected_loss->Loss());
  const auto expected = Generate(&cpu.execution(), prompts, {.max_new_tokens = kNewTokens});
  const auto generated = Generate(&cuda.execution(), prompts, {.max_new_tokens = kNewTokens});
  ASSERT_TRUE(generated.ok()) << generated.status();
  EXPECT_EQ(*generated, *expected);
}

INSTANTIATE_TEST_SUITE_P(Families, CudaInference, testing::Values("llama3_tied", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace qlora::engine
