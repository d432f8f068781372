#include "engine/commands/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "proto/errors.h"

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

namespace {

// What one batch adds to the result; sent between ranks as it lies in memory.
struct BatchSums {
  double loss = 0;
  int64_t correct = 0;
};

// Every rank's values at its own places (index mod size) on all ranks.
template <class T>
absl::Status Exchange(Ranks* ranks, const std::string& what, std::vector<T>* values) {
  if (ranks == nullptr) return absl::OkStatus();
  absl::StatusOr<std::vector<std::string>> all = ranks->control().AllGather(
      what, {reinterpret_cast<const char*>(values->data()), values->size() * sizeof(T)});
  if (!all.ok()) return all.status();
  for (size_t i = 0; i < values->size(); ++i) {
    const std::string& bytes = (*all)[i % size_t(ranks->size())];
    if (bytes.size() != values->size() * sizeof(T)) {
      return absl::InternalError("ranks disagree on the number of evaluation batches");
    }
    std::memcpy(&(*values)[i], bytes.data() + i * sizeof(T), sizeof(T));
  }
  return absl::OkStatus();
}

bool IsMine(const Ranks* ranks, int64_t index) {
  return ranks == nullptr || index % ranks->size() == ranks->rank();
}

// Whether pieces gather weights from all ranks: then none may run more of them than another.
bool RunsTogether(const Execution& execution) {
  return !execution.plan().run.storage.gathered.empty();
}

absl::Status StoppedWhen(const absl::StatusOr<int>& signal) {
  if (!signal.ok()) return signal.status();
  return *signal == 0 ? absl::OkStatus()
                      : proto::StoppedError(*signal, "stopped before the evaluation was done");
}

// Stopped where this rank may leave its share of an evaluation. Ranks that run `together` leave it
// at the same point.
absl::Status CheckStop(StopRequest* stop, bool together) {
  if (stop == nullptr) return absl::OkStatus();
  return StoppedWhen(together ? stop->Agree() : stop->Heard());
}

// Behind all shares, done or left: Stopped on all ranks where one has heard of a stop.
absl::Status AgreeOnStop(StopRequest* stop) {
  return stop == nullptr ? absl::OkStatus() : StoppedWhen(stop->Agree());
}

}  // namespace

absl::StatusOr<EvalResult> EvaluateLoss(Execution* execution, const Batcher& batcher,
                                        const LogitsSink& logits_of, Ranks* ranks, int64_t course,
                                        StopRequest* stop) {
  const EvalPieces& pieces = *execution->plan().run.eval;
  EvalResult result;
  std::vector<float> logits;
  const int64_t batches = batcher.StepsOf(1.0);
  std::vector<BatchSums> sums(batches);
  // Ranks that have no batch left in the last round run one again, for the company.
  const bool together = ranks != nullptr && RunsTogether(*execution);
  const int64_t turns = together ? kernels::AlignUp(batches, ranks->size()) : batches;
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int64_t i = std::min(turn, batches - 1);
    const std::vector<MicroBatch> step = batcher.Step(i);
    const MicroBatch& batch = step.front();
    if (turn == i) {
      result.tokens += int64_t(batch.rows.size());
      result.samples += int64_t(batch.documents.size());
    }
    if (!IsMine(ranks, turn)) continue;
    // Together: each rank once a round.
    if (absl::Status s = CheckStop(stop, together); absl::IsCancelled(s)) {
      break;
    } else if (!s.ok()) {
      return s;
    }
    if (ranks != nullptr) ranks->control().Progress();
    MicroBatchInputs contents = batch.inputs();
    contents.only = course;
    const std::vector<uint8_t> inputs = EncodeBatch(pieces.inputs, contents, {});
    if (absl::Status s = execution->Stage(pieces.inputs.live_tokens, inputs.data(), inputs.size());
        !s.ok()) {
      return s;
    }
    if (absl::Status s = execution->Run(pieces.forward); !s.ok()) return s;
    const absl::StatusOr<double> loss =
        execution->ReadScalar<double>(SliceRows(pieces.loss.loss, course, 1));
    if (!loss.ok()) return loss.status();
    const absl::StatusOr<int32_t> correct =
        execution->ReadScalar<int32_t>(SliceRows(pieces.loss.correct, course, 1));
    if (!correct.ok()) return correct.status();
    if (turn != i) continue;
    sums[i] = {*loss, *correct};
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
  if (absl::Status s = AgreeOnStop(stop); !s.ok()) return s;
  if (absl::Status s = Exchange(ranks, "evaluation", &sums); !s.ok()) return s;
  for (const BatchSums& batch : sums) {
    result.loss_sum += batch.loss;
    result.correct += batch.correct;
  }
  return result;
}

std::pair<int64_t, int64_t> LastTrainedRun(const Sample& sample) {
  int64_t end = int64_t(sample.ids.size());
  while (end > 1 && !sample.trained[end - 1]) --end;
  int64_t begin = end;
  while (begin > std::max<int64_t>(1, sample.prompt) && sample.trained[begin - 1]) --begin;
  return {begin, end};
}

absl::StatusOr<int64_t> CountExactMatches(Execution* execution, const Dataset& dataset,
                                          const Tokenizer& tokenizer, GenerationOptions options,
                                          Ranks* ranks, StopRequest* stop) {
  const bool together = ranks != nullptr && RunsTogether(*execution);
  options.on_token = [=] {
    if (ranks != nullptr) ranks->control().Progress();
    return CheckStop(stop, together);
  };
  // All ranks generate everything: how many tokens an answer takes only its end tells.
  if (together) ranks = nullptr;
  // Whole rounds of generation, as many sequences at a time as one rank alone would take.
  const int64_t round = execution->plan().run.generate->logits.rows;
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::string> answers;
  const auto text_of = [&](absl::Span<const int32_t> ids) {
    return std::string(absl::StripAsciiWhitespace(tokenizer.Decode(ids, true)));
  };
  for (size_t i = 0; i < dataset.samples.size(); ++i) {
    if (!IsMine(ranks, int64_t(i) / round)) continue;
    const Sample& sample = dataset.samples[i];
    const auto [begin, end] = LastTrainedRun(sample);
    prompts.emplace_back(sample.ids.begin(), sample.ids.begin() + begin);
    answers.push_back(text_of(absl::MakeConstSpan(sample.ids).subspan(begin, end - begin)));
  }
  std::vector<std::vector<int32_t>> generated;
  if (!prompts.empty()) {
    absl::StatusOr<std::vector<std::vector<int32_t>>> result =
        Generate(execution, prompts, options);
    if (!result.ok() && !absl::IsCancelled(result.status())) return result.status();
    if (result.ok()) generated = *std::move(result);
  }
  if (absl::Status s = AgreeOnStop(stop); !s.ok()) return s;
  // One count a rank, at its own place.
  std::vector<int64_t> matches(ranks == nullptr ? 1 : ranks->size());
  int64_t& mine = matches[ranks == nullptr ? 0 : ranks->rank()];
  for (size_t i = 0; i < answers.size(); ++i) {
    if (text_of(generated[i]) == answers[i]) ++mine;
  }
  if (absl::Status s = Exchange(ranks, "exact matches", &matches); !s.ok()) return s;
  return std::accumulate(matches.begin(), matches.end(), int64_t{0});
}

}  // namespace qlora::engine
