// Loss, token accuracy and exact match of a run's model on held-out samples.

#ifndef QLORA_ENGINE_COMMANDS_EVALUATE_H_
#define QLORA_ENGINE_COMMANDS_EVALUATE_H_

#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/comm/ranks.h"
#include "engine/comm/stop_request.h"
#include "engine/commands/generate.h"
#include "engine/data/batcher.h"
#include "engine/step/execution.h"
#include "engine/text/tokenizer.h"

namespace qlora::engine {

struct EvalResult {
  double loss_sum = 0;  // Σ −log p over trained tokens
  int64_t tokens = 0;
  int64_t correct = 0;  // tokens whose prediction was the most likely one
  int64_t samples = 0;
  std::optional<int64_t> exact_matches;

  double Loss() const { return loss_sum / double(tokens); }
  double Perplexity() const;
  double Accuracy() const { return double(correct) / double(tokens); }
  double ExactMatch() const { return double(*exact_matches) / double(samples); }
};

// "loss 1.234, perplexity 3.44, 71.2 % of tokens, 12 of 40 exact".
std::string DescribeEval(const EvalResult& result);

// How evaluation batches are cut: samples in order, `rows` at a time.
BatcherOptions EvalBatcherOptions(int64_t rows, int64_t max_length);

// The loss that a course's adapter has on all of `batcher`'s samples, spread over the ranks (null:
// this one alone): each takes every size-th batch, and all get the result, which does not tell how
// many they were. `logits_of` (may be empty) sees each of this rank's batches' bound logits, where
// recorded. `stop` (null: never) is asked at each batch: Stopped, on all ranks, where there is such
// a request.
using LogitsSink =
    std::function<absl::Status(const MicroBatch& batch, absl::Span<const float> logits)>;
absl::StatusOr<EvalResult> EvaluateLoss(Execution* execution, const Batcher& batcher,
                                        const LogitsSink& logits_of, Ranks* ranks = nullptr,
                                        int64_t course = 0, StopRequest* stop = nullptr);

// Where the sample's answer stands: the last trained tokens in a row (of a chat the assistant's
// last turn), without the prompt, where that is trained too, and without the sample's first token,
// which nothing predicts.
std::pair<int64_t, int64_t> LastTrainedRun(const Sample& sample);

// Generates an answer to what stands before each sample's last trained run, greedily, and counts
// those whose text equals the run's, white space at both ends aside. Spread over the ranks
// and stopped likewise, `stop` asked at each token.
absl::StatusOr<int64_t> CountExactMatches(Execution* execution, const Dataset& dataset,
                                          const Tokenizer& tokenizer, GenerationOptions options,
                                          Ranks* ranks = nullptr, StopRequest* stop = nullptr);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_EVALUATE_H_
