#include "engine/evaluate.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"

namespace qlora::engine {

double EvalResult::Perplexity() const { return std::exp(Loss()); }

std::string DescribeEval(const EvalResult& result) {
  std::string text = absl::StrFormat("loss %.4f, perplexity %.3f, %.2f %% of tokens right",
                                     result.Loss(), result.Perplexity(), 100 * result.Accuracy());
  if (result.exact_matches) {
    absl::StrAppendFormat(&text, ", %d of %d answers exact (%.1f %%)", *result.exact_matches,
                          result.samples, 100 * result.ExactMatch());
  }
  return text;
}

BatcherOptions EvalBatcherOptions(int64_t rows, int64_t max_length) {
  return {.rows_per_micro_batch = rows, .max_length = max_length, .shuffle = false};
}

absl::StatusOr<EvalResult> EvaluateLoss(Execution* execution, const Batcher& batcher,
                                        const LogitsSink& logits_of) {
  const EvalPieces& pieces = *execution->plan().run.eval;
  EvalResult result;
  std::vector<float> logits;
  const int64_t batches = batcher.StepsOf(1.0);
  for (int64_t i = 0; i < batches; ++i) {
    const std::vector<MicroBatch> step = batcher.Step(i);
    const MicroBatch& batch = step.front();
    const std::vector<uint8_t> inputs = EncodeBatch(pieces.inputs, batch.inputs(), {});
    if (absl::Status s = execution->Stage(pieces.inputs.live_tokens, inputs.data(), inputs.size());
        !s.ok()) {
      return s;
    }
    if (absl::Status s = execution->Run(pieces.forward); !s.ok()) return s;
    const absl::StatusOr<double> loss = execution->ReadScalar<double>(pieces.loss.loss);
    if (!loss.ok()) return loss.status();
    const absl::StatusOr<int32_t> correct = execution->ReadScalar<int32_t>(pieces.loss.correct);
    if (!correct.ok()) return correct.status();
    result.loss_sum += *loss;
    result.correct += *correct;
    result.tokens += int64_t(batch.rows.size());
    result.samples += int64_t(batch.documents.size());
    if (logits_of && pieces.logits) {
      logits.resize(batch.ids.size() * pieces.logits.cols);
      if (absl::Status s =
              execution->Read(pieces.logits, logits.data(), int64_t(logits.size()) * 4);
          !s.ok()) {
        return s;
      }
      if (absl::Status s = logits_of(batch, logits); !s.ok()) return s;
    }
  }
  return result;
}

std::pair<int64_t, int64_t> LastTrainedRun(const Sample& sample) {
  int64_t end = int64_t(sample.ids.size());
  while (end > 1 && !sample.trained[end - 1]) --end;
  int64_t begin = end;
  while (begin > 1 && sample.trained[begin - 1]) --begin;
  return {begin, end};
}

absl::StatusOr<int64_t> CountExactMatches(Execution* execution, const Dataset& dataset,
                                          const Tokenizer& tokenizer,
                                          const GenerationOptions& options) {
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::string> answers;
  const auto text_of = [&](absl::Span<const int32_t> ids) {
    return std::string(absl::StripAsciiWhitespace(tokenizer.Decode(ids, true)));
  };
  for (const Sample& sample : dataset.samples) {
    const auto [begin, end] = LastTrainedRun(sample);
    prompts.emplace_back(sample.ids.begin(), sample.ids.begin() + begin);
    answers.push_back(text_of(absl::MakeConstSpan(sample.ids).subspan(begin, end - begin)));
  }
  absl::StatusOr<std::vector<std::vector<int32_t>>> generated =
      Generate(execution, prompts, options);
  if (!generated.ok()) return generated.status();
  int64_t matches = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    if (text_of((*generated)[i]) == answers[i]) ++matches;
  }
  return matches;
}

}  // namespace qlora::engine
