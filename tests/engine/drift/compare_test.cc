// Models that pass through memory layer by layer against whole forward passes.
#include "engine/drift/compare.h"

#include "engine/commands/evaluate.h"
#include "engine/drift/ends_run.h"
#include "engine/drift/layer_run.h"
#include "engine/drift/logit_score.h"
#include "engine/model/families.h"
#include "engine/model/load_weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"
#include "tests/engine/model/golden_files.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/deferred_device.h"
#include "tests/support/paths.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using kernels::optest::DeferredDevice;

constexpr int64_t kRows = 2;

const quant::QuantSpec kNf4{.block_size = 32};

class CompareTest : public testing::Test {
 protected:
  void Use(const std::string& model) {
    data_ = GoldenDocuments(model);
    batcher_.emplace(&data_, EvalBatcherOptions(kRows, 128));
    const std::string folder = GoldenModelPath(model);
    spec_ = *ReadModelConfig(Env::Default(), folder);
    model_ = *ShardedModel::Open(Env::Default(), folder);
    std::vector<std::string> warnings;
    ASSERT_TRUE(CheckCheckpoint(*model_, proto::Mode::QLORA, kNf4, &spec_, &warnings).ok());
  }

  StreamContext Context(kernels::Device* device, int64_t memory = int64_t{1} << 30) const {
    return {.spec = &spec_,
            .device = device,
            .limits = {.memory_bytes = memory, .memory_source = "the test"},
            .capacity = batcher_->capacity(),
            .rope_positions = data_.report.longest,
            .threads = 1};
  }

  // A golden adapter of all linears.
  AdapterWeights Adapter(const std::string& folder) const {
    const LoraTargets all = AllLinears(spec_, 1, 1, false);
    return *ReadAdapterWeights(Env::Default(), GoldenModelPath(folder), all.modules);
  }

  ModelForm Form(DType compute, DType dense, std::optional<quant::QuantSpec> quant = {}) const {
    return {.model = &*model_, .compute = compute, .dense = dense, .quant = quant};
  }
  ModelForm Baseline() const { return Form(DType::kF32, spec_.stored_dtype); }

  Comparison Compare(const std::vector<ModelForm>& forms, kernels::Device* device,
                     int64_t memory = int64_t{1} << 30) {
    auto result = CompareModels(Context(device, memory), forms, data_, *batcher_, {});
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : Comparison{};
  }

  // The logits of all trained rows by the program that `eval` runs.
  std::vector<float> WholeLogits(const std::string& model, const std::string& adapter,
                                 DType compute, std::optional<quant::QuantSpec> quant) {
    RecordOptions record;
    record.storage.mode = quant ? proto::Mode::QLORA : proto::Mode::LORA;
    record.storage.compute = compute;
    record.storage.quant = quant.value_or(kNf4);
    record.storage.training = false;
    record.storage.rope_positions = data_.report.longest;
    if (!adapter.empty()) {
      const AdapterWeights weights = Adapter(adapter);
      record.storage.lora = {
          AllLinears(spec_, int(weights.r), weights.lora_alpha, weights.use_rslora)};
    }
    record.eval = batcher_->capacity();
    record.eval_logits = true;
    ModelRun run({.model = model, .adapter = adapter, .record = record}, CpuDevice());
    std::vector<float> rows;
    const auto result = EvaluateLoss(
        &run.execution(), *batcher_, [&](const MicroBatch& batch, absl::Span<const float> logits) {
          for (const int32_t row : batch.rows) {
            const auto part = logits.subspan(int64_t(row) * spec_.vocab, spec_.vocab);
            rows.insert(rows.end(), part.begin(), part.end());
          }
          return absl::OkStatus();
        });
    EXPECT_TRUE(result.ok()) << result.status();
    return rows;
  }

  // Sums over rows of logits against rows of the baseline's, in the order of CompareModels.
  ModelScore Score(std::vector<float> baseline, std::vector<float> logits) const {
    ModelScore score;
    size_t row = 0;
    for (int64_t i = 0; i < batcher_->StepsOf(1); ++i) {
      const MicroBatch batch = batcher_->Step(i).front();
      for (const int32_t target : batch.targets) {
        const auto part = [&](std::vector<float>* all) {
          return absl::MakeSpan(*all).subspan(row * spec_.vocab, spec_.vocab);
        };
        const BaselineRow prepared = PrepareBaseline(part(&baseline), spec_.logit_softcap);
        const RowScore s = ScoreRow(part(&baseline), prepared, part(&logits), 0, target);
        score.loss += s.loss, score.kl += s.kl, score.agree += s.agrees;
        ++score.tokens, ++row;
      }
    }
    return score;
  }

  static void ExpectEqual(const ModelScore& a, const ModelScore& b) {
    EXPECT_EQ(a.loss, b.loss);
    EXPECT_EQ(a.kl, b.kl);
    EXPECT_EQ(a.agree, b.agree);
    EXPECT_EQ(a.tokens, b.tokens);
  }

  Dataset data_;
  std::optional<Batcher> batcher_;
  ModelSpec spec_;
  std::optional<ShardedModel> model_;
  std::unique_ptr<kernels::Device> cpu_ = CpuDevice();
};

class CompareFamilies : public CompareTest, public testing::WithParamInterface<const char*> {};

// Sums of doubles that are equal to the last bit: so are the logits.
TEST_P(CompareFamilies, HasTheNumbersOfWholePasses) {
  Use(GetParam());
  const std::vector<float> baseline = WholeLogits(GetParam(), "", DType::kF32, {});
  const Comparison found = Compare(
      {Baseline(), Form(DType::kF32, spec_.stored_dtype, kNf4),
       Form(DType::kBf16, spec_.stored_dtype, kNf4), Form(DType::kBf16, spec_.stored_dtype)},
      cpu_.get());
  ASSERT_EQ(found.models.size(), 4u);
  ExpectEqual(found.models[0], Score(baseline, baseline));
  ExpectEqual(found.models[1], Score(baseline, WholeLogits(GetParam(), "", DType::kF32, kNf4)));
  ExpectEqual(found.models[2], Score(baseline, WholeLogits(GetParam(), "", DType::kBf16, kNf4)));
  ExpectEqual(found.models[3], Score(baseline, WholeLogits(GetParam(), "", DType::kBf16, {})));
  EXPECT_GT(found.models[1].kl, 0);
  EXPECT_GT(found.models[1].layers.back().RelativeError(), 0.01);
  EXPECT_LT(found.models[1].layers.back().Cosine(), 1);
  EXPECT_EQ(found.models[0].kl, 0);
}

INSTANTIATE_TEST_SUITE_P(Families, CompareFamilies,
                         testing::Values("llama", "llama3_tied", "llama_bias", "mistral",
                                         "qwen2_window", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

TEST_F(CompareTest, AnAdapterActsAsInAWholePass) {
  Use("llama");
  const std::string folder = "qlora_llama/adapter";
  const AdapterWeights adapter = Adapter(folder);
  std::vector<ModelForm> forms = {Baseline(), Form(DType::kBf16, spec_.stored_dtype, kNf4)};
  for (ModelForm& form : forms) form.adapter = &adapter;
  forms.push_back(Form(DType::kF32, spec_.stored_dtype));
  const Comparison found = Compare(forms, cpu_.get());
  const std::vector<float> baseline = WholeLogits("llama", folder, DType::kF32, {});
  ExpectEqual(found.models[0], Score(baseline, baseline));
  ExpectEqual(found.models[1], Score(baseline, WholeLogits("llama", folder, DType::kBf16, kNf4)));
  EXPECT_GT(found.models[2].kl, 0);  // the adapter does something
}

TEST_F(CompareTest, WhatChangesNothingHasNoDrift) {
  Use("qwen3");
  // All linears kept is not quantized; an adapter of one module, B zero, adds nothing.
  ModelForm kept = Form(DType::kF32, spec_.stored_dtype, kNf4);
  AdapterWeights zero{.r = 2, .lora_alpha = 4};
  for (const WeightRow& row : WeightRows(spec_)) {
    if (!row.lora_target) continue;
    kept.kept.push_back(row.module);
    if (zero.modules.empty()) {
      zero.modules[row.module] = {.in = row.cols,
                                  .out = row.rows,
                                  .a = std::vector<float>(2 * row.cols, 0.5f),
                                  .b = std::vector<float>(row.rows * 2)};
    }
  }
  ModelForm adapted = Baseline();
  adapted.adapter = &zero;
  const Comparison found = Compare({Baseline(), Baseline(), kept, adapted}, cpu_.get());
  for (size_t f = 1; f < 4; ++f) {
    EXPECT_EQ(found.models[f].kl, 0) << f;
    EXPECT_EQ(found.models[f].loss, found.models[0].loss) << f;
    EXPECT_EQ(found.models[f].Top1Agreement(), 1) << f;
    for (const StreamError& layer : found.models[f].layers) EXPECT_EQ(layer.RelativeError(), 0);
  }
}

TEST_F(CompareTest, NumbersThatGoBadAreNoResult) {
  Use("llama");
  AdapterWeights huge = Adapter("qlora_llama/adapter");
  for (auto& [name, factors] : huge.modules) factors.b.assign(factors.b.size(), 1e38f);
  ModelForm adapted = Form(DType::kBf16, spec_.stored_dtype, kNf4);
  adapted.name = "overflowing";
  adapted.adapter = &huge;
  const auto found =
      CompareModels(Context(cpu_.get()), {Baseline(), adapted}, data_, *batcher_, {});
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(proto::ExitCodeOf(found.status()), proto::kExitNumbersBad);
  EXPECT_THAT(std::string(found.status().message()), testing::HasSubstr("\"overflowing\""));
}

TEST_F(CompareTest, AKeptLayerIsAsTheBaselinesUntilTheNext) {
  Use("llama");
  ModelForm form = Form(DType::kF32, spec_.stored_dtype, kNf4);
  for (const WeightRow& row : WeightRows(spec_)) {
    if (row.lora_target && row.layer == 0) form.kept.push_back(row.module);
  }
  const Comparison found = Compare({Baseline(), form}, cpu_.get());
  EXPECT_EQ(found.models[1].layers[0].RelativeError(), 0);
  EXPECT_GT(found.models[1].layers[1].RelativeError(), 0);
}

TEST_F(CompareTest, TheProbeSeesOneLayerAlone) {
  Use("llama");
  const std::vector<ModelForm> forms = {Baseline(), Form(DType::kF32, spec_.stored_dtype),
                                        Form(DType::kF32, spec_.stored_dtype, kNf4)};
  auto found = CompareModels(Context(cpu_.get()), forms, data_, *batcher_,
                             {.probe = Probe{.form = 2, .reference = 1}});
  ASSERT_TRUE(found.ok()) << found.status();
  // At the first layer nothing has accumulated; behind it more than a layer's own has.
  EXPECT_EQ(found->alone[0].RelativeError(), found->models[2].layers[0].RelativeError());
  EXPECT_LT(found->alone[1].RelativeError(), found->models[2].layers[1].RelativeError());
}

TEST_F(CompareTest, SamplesSumUpToTheWhole) {
  Use("llama");
  const Comparison found =
      Compare({Baseline(), Form(DType::kBf16, spec_.stored_dtype, kNf4)}, cpu_.get());
  double kl = 0;
  for (size_t i = 0; i < data_.samples.size(); ++i) {
    const SampleScore& sample = found.models[1].samples[i];
    EXPECT_EQ(sample.tokens, int64_t(data_.samples[i].ids.size()) - 1);
    kl += sample.kl;
  }
  EXPECT_NEAR(kl, found.models[1].kl, 1e-12);
}

TEST_F(CompareTest, LittleMemoryTakesSamplesInParts) {
  Use("llama");
  const std::vector<ModelForm> forms = {Baseline(), Form(DType::kBf16, spec_.stored_dtype, kNf4)};
  const Comparison whole = Compare(forms, cpu_.get());
  EXPECT_EQ(whole.parts, 1);
  const int64_t streams = batcher_->capacity().tokens * spec_.hidden * (4 + 2);
  const int64_t fixed = whole.plan_bytes - batcher_->StepsOf(1) * streams;
  const Comparison parts = Compare(forms, cpu_.get(), fixed + streams);
  EXPECT_EQ(parts.parts, batcher_->StepsOf(1));
  EXPECT_LE(parts.plan_bytes, fixed + streams);
  ExpectEqual(parts.models[1], whole.models[1]);
  const auto refused =
      CompareModels(Context(cpu_.get(), fixed + streams - 1), forms, data_, *batcher_, {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), testing::HasSubstr("fewer models"));
}

// By the plan alone: 8B in 16 bits are 15 GiB, and twelve models of it pass through a third of
// that.
TEST(ComparePlan, TheSixteenBitModelNeverHasToFit) {
  const absl::StatusOr<ModelSpec> spec =
      ReadModelConfig(Env::Default(), tests::SourceDir() + "/bench/models/llama3_8b");
  ASSERT_TRUE(spec.ok()) << spec.status();
  const std::unique_ptr<kernels::Device> device = CpuDevice();
  const StreamContext context{
      .spec = &*spec,
      .device = device.get(),
      .limits = {.memory_bytes = int64_t{5} << 30, .memory_source = "the test"},
      .capacity = {.tokens = 1024, .documents = 1, .trained_rows = 1024},
      .rope_positions = 1024};
  const ShardedModel none;
  std::vector<ModelForm> forms = {{.model = &none, .compute = DType::kF32, .dense = DType::kF16},
                                  {.model = &none, .compute = DType::kBf16, .dense = DType::kBf16}};
  for (const int block : {32, 64, 128, 256, 512, 1024, 2048, 4096}) {
    for (const bool double_quant : {true, false}) {
      if (forms.size() == 12) break;
      forms.push_back(forms[1]);
      forms.back().quant = quant::QuantSpec{.block_size = block, .double_quant = double_quant};
    }
  }
  const auto layers = LayerRun::Create(context, forms, true);
  ASSERT_TRUE(layers.ok()) << layers.status();
  EXPECT_GT((*layers)->plan().run.program.BytesOf(BufferClass::kQuantizedWeights),
            10 * int64_t{100} << 20);
  EXPECT_TRUE(EmbeddingRun::Create(context, forms[0]).ok());
  EXPECT_TRUE(HeadRun::Create(context, forms, 64).ok());
}

// On a device that runs late, in any order that operands allow, in memory that the host can't
// reach.
TEST_F(CompareTest, OnADeferredDevice) {
  Use("qwen2_window");
  const std::vector<ModelForm> forms = {Baseline(), Form(DType::kBf16, spec_.stored_dtype, kNf4)};
  const Comparison expected = Compare(forms, cpu_.get());
  DeferredDevice late(CpuDevice(), {.seed = 5});
  const Comparison found = Compare(forms, &late);
  ExpectEqual(found.models[0], expected.models[0]);
  ExpectEqual(found.models[1], expected.models[1]);
}

}  // namespace
}  // namespace qlora::engine
