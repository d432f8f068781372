// Generation with a key/value cache against whole forward passes, and what counts as an answer.

#include "engine/commands/evaluate.h"

#include <algorithm>

#include "engine/commands/generate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/run/model_run.h"

namespace qlora::engine {
namespace {

using testing::Pair;

class Generation : public testing::TestWithParam<const char*> {};

// Prompts of different lengths, fed in parts of 4 tokens, two sequences at a time: each token must
// be the likeliest one by a forward pass over all that stands before it.
TEST_P(Generation, EveryTokenIsTheLikeliestOfAWholePass) {
  constexpr int64_t kNewTokens = 10;
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
  record.eval = BatchCapacity{.tokens = context, .documents = 1, .trained_rows = context};
  record.eval_logits = true;
  ModelRun run({.model = GetParam(), .record = record}, CpuDevice());

  const auto generated = Generate(&run.execution(), prompts, {.max_new_tokens = kNewTokens});
  ASSERT_TRUE(generated.ok()) << generated.status();
  for (size_t i = 0; i < prompts.size(); ++i) {
    ASSERT_EQ((*generated)[i].size(), size_t(kNewTokens));
    Dataset whole;
    whole.samples.push_back({.ids = prompts[i], .trained = {}});
    auto& ids = whole.samples[0].ids;
    ids.insert(ids.end(), (*generated)[i].begin(), (*generated)[i].end());
    whole.samples[0].trained.assign(ids.size(), 1);
    const Batcher batcher(&whole, {.shuffle = false});
    const auto result = EvaluateLoss(
        &run.execution(), batcher, [&](const MicroBatch&, absl::Span<const float> logits) {
          const int64_t vocab = run.storage().spec.vocab;
          for (size_t t = prompts[i].size(); t < ids.size(); ++t) {
            const auto row = logits.subspan((t - 1) * vocab, vocab);
            EXPECT_EQ(ids[t], std::max_element(row.begin(), row.end()) - row.begin())
                << "prompt " << i << ", token " << t;
          }
          return absl::OkStatus();
        });
    ASSERT_TRUE(result.ok()) << result.status();
  }
}

TEST_P(Generation, EndsAtAStopToken) {
  const Dataset documents = GoldenDocuments(GetParam());
  const std::vector<std::vector<int32_t>> prompts = {documents.samples[1].ids};
  RecordOptions record;
  record.storage.mode = proto::Mode::LORA;
  record.storage.training = false;
  record.storage.rope_positions = 40;
  record.generate = {.sequences = 1, .context = 40, .prefill = 16};
  ModelRun run({.model = GetParam(), .record = record}, CpuDevice());
  int told = 0;
  const auto all = Generate(&run.execution(), prompts, {.max_new_tokens = 8, .on_token = [&told] {
                                                          ++told;
                                                          return absl::OkStatus();
                                                        }});
  ASSERT_TRUE(all.ok()) << all.status();
  const std::vector<int32_t>& tokens = all->front();
  ASSERT_EQ(tokens.size(), 8u);
  EXPECT_EQ(told, 1 + 8) << "the prompt, and each token";
  const auto stopped =
      Generate(&run.execution(), prompts, {.max_new_tokens = 8, .stop_ids = {tokens[3]}});
  const auto first = std::find(tokens.begin(), tokens.end(), tokens[3]);
  EXPECT_EQ(stopped->front(), std::vector<int32_t>(tokens.begin(), first + 1));
}

TEST_P(Generation, EndsWhereTheContextIsFull) {
  const Dataset documents = GoldenDocuments(GetParam());
  const std::vector<std::vector<int32_t>> prompts = {documents.samples[1].ids};
  const int64_t prompt = int64_t(prompts[0].size());
  RecordOptions record;
  record.storage.mode = proto::Mode::LORA;
  record.storage.training = false;
  record.storage.rope_positions = prompt + 3;
  record.generate = {.sequences = 1, .context = prompt + 3, .prefill = 16};
  ModelRun run({.model = GetParam(), .record = record}, CpuDevice());
  const auto generated = Generate(&run.execution(), prompts, {.max_new_tokens = 8});
  ASSERT_TRUE(generated.ok()) << generated.status();
  // The last token needs no room: nothing is predicted from it.
  EXPECT_EQ(generated->front().size(), 4u);
  const std::vector<std::vector<int32_t>> long_prompts = {std::vector<int32_t>(prompt + 4, 5)};
  EXPECT_FALSE(Generate(&run.execution(), long_prompts, {.max_new_tokens = 1}).ok());
}

INSTANTIATE_TEST_SUITE_P(Families, Generation,
                         testing::Values("llama3_tied", "llama_bias", "mistral", "qwen2_window",
                                         "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

TEST(LastTrainedRun, IsTheAnswer) {
  const auto run_of = [](std::vector<uint8_t> trained, int64_t prompt = 0) {
    Sample sample;
    sample.prompt = prompt;
    sample.ids.resize(trained.size());
    sample.trained = std::move(trained);
    return LastTrainedRun(sample);
  };
  EXPECT_THAT(run_of({0, 0, 1, 1}), Pair(2, 4));
  EXPECT_THAT(run_of({0, 1, 1, 0, 0, 1, 1, 1, 0}), Pair(5, 8));  // a chat of two turns
  EXPECT_THAT(run_of({1, 1, 1}), Pair(1, 3));                    // plain text
  EXPECT_THAT(run_of({1, 1, 1, 1}, 3), Pair(3, 4));              // the prompt is trained too
}

}  // namespace
}  // namespace qlora::engine
