#include "engine/commands/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/philox.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

// One sequence on its way: `length` of its tokens are in the cache.
struct Active {
  int64_t index;  // of the prompt
  int64_t slot;   // of the cache
  int64_t length = 0;
  int32_t next = 0;  // the token to feed
};

double UniformOf(uint64_t seed, int64_t sequence, int64_t position) {
  constexpr uint32_t kStream = 0x67656e65;  // apart from every other use of the seed
  const auto bits = kernels::Philox({uint32_t(sequence), uint32_t(position), 0, 0},
                                    {uint32_t(seed), uint32_t(seed >> 32) ^ kStream});
  return (double(bits[0]) + 0.5) / 4294967296.0;
}

int32_t Choose(absl::Span<const float> logits, const GenerationOptions& options, double uniform) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (options.temperature == 0) return int32_t(best - logits.begin());
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  std::vector<double> weight(logits.size());
  double sum = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    weight[i] = std::exp((double(logits[order[i]]) - *best) / options.temperature);
    sum += weight[i];
  }
  double kept = 0;
  size_t count = 0;
  while (count < order.size() && (count == 0 || kept < options.top_p * sum))
    kept += weight[count++];
  double rest = uniform * kept;
  for (size_t i = 0; i < count; ++i) {
    rest -= weight[i];
    if (rest <= 0) return order[i];
  }
  return order[count - 1];
}

class GenerationRun {
 public:
  GenerationRun(Execution* execution, absl::Span<const std::vector<int32_t>> prompts,
                const GenerationOptions& options)
      : execution_(*execution),
        pieces_(*execution->plan().run.generate),
        options_(options),
        prompts_(prompts),
        sequences_(pieces_.decode_inputs.capacity.tokens),
        context_(pieces_.context),
        results_(prompts.size()) {}

  absl::StatusOr<std::vector<std::vector<int32_t>>> Run() {
    for (size_t begin = 0; begin < prompts_.size(); begin += sequences_) {
      const size_t end = std::min(prompts_.size(), begin + size_t(sequences_));
      std::vector<Active> group;
      for (size_t i = begin; i < end; ++i) {
        absl::StatusOr<Active> active = Prefill(int64_t(i), int64_t(i - begin));
        if (!active.ok()) return active.status();
        group.push_back(*active);
        if (absl::Status s = Tell(); !s.ok()) return s;
      }
      for (int64_t n = 0; n < options_.max_new_tokens && !group.empty(); ++n) {
        if (absl::Status s = Decode(&group); !s.ok()) return s;
        if (absl::Status s = Tell(); !s.ok()) return s;
      }
    }
    return std::move(results_);
  }

 private:
  absl::Status Tell() const { return options_.on_token ? options_.on_token() : absl::OkStatus(); }

  // All but the last token of the prompt: that one is the first that Decode feeds.
  absl::StatusOr<Active> Prefill(int64_t index, int64_t slot) {
    const std::vector<int32_t>& prompt = prompts_[index];
    if (prompt.empty()) return proto::BadDataError(absl::StrCat("prompt ", index, " has no token"));
    if (int64_t(prompt.size()) > context_) {
      return proto::BadDataError(absl::StrCat("prompt ", index, " has ", prompt.size(),
                                              " tokens; the model and this run have room for ",
                                              context_));
    }
    Active active{.index = index, .slot = slot, .next = prompt.back()};
    const int64_t part = pieces_.prefill_inputs.capacity.tokens;
    const int64_t all = int64_t(prompt.size()) - 1;
    while (active.length < all) {
      const int64_t count = std::min(part, all - active.length);
      std::vector<int32_t> positions(count);
      std::iota(positions.begin(), positions.end(), int32_t(active.length));
      const DocumentBounds document{0, int32_t(count), int32_t(slot * context_),
                                    int32_t(active.length + count)};
      if (absl::Status s = Feed(pieces_.prefill_inputs, pieces_.prefill,
                                {.ids = absl::MakeConstSpan(prompt).subspan(active.length, count),
                                 .positions = positions,
                                 .documents = {&document, 1},
                                 .only = options_.course});
          !s.ok()) {
        return s;
      }
      active.length += count;
    }
    return active;
  }

  absl::Status Feed(const BatchViews& views, int64_t piece, const MicroBatchInputs& batch) {
    const std::vector<uint8_t> inputs = EncodeBatch(views, batch, {});
    if (absl::Status s = execution_.Stage(views.live_tokens, inputs.data(), inputs.size());
        !s.ok()) {
      return s;
    }
    return execution_.Run(piece);
  }

  // One token for every sequence of the group; those that end leave it.
  absl::Status Decode(std::vector<Active>* group) {
    std::vector<int32_t> ids, positions;
    std::vector<DocumentBounds> documents;
    for (const Active& a : *group) {
      documents.push_back(
          {int32_t(ids.size()), 1, int32_t(a.slot * context_), int32_t(a.length + 1)});
      ids.push_back(a.next);
      positions.push_back(int32_t(a.length));
    }
    if (absl::Status s = Feed(
            pieces_.decode_inputs, pieces_.decode,
            {.ids = ids, .positions = positions, .documents = documents, .only = options_.course});
        !s.ok()) {
      return s;
    }
    const int64_t vocab = pieces_.logits.cols;
    logits_.resize(group->size() * vocab);
    if (absl::Status s =
            execution_.Read(pieces_.logits, logits_.data(), int64_t(logits_.size()) * 4);
        !s.ok()) {
      return s;
    }
    std::vector<Active> going_on;
    for (size_t i = 0; i < group->size(); ++i) {
      Active a = (*group)[i];
      ++a.length;
      a.next = Choose(absl::MakeConstSpan(logits_).subspan(i * vocab, vocab), options_,
                      UniformOf(options_.seed, a.index, a.length));
      results_[a.index].push_back(a.next);
      const bool stops = std::find(options_.stop_ids.begin(), options_.stop_ids.end(), a.next) !=
                         options_.stop_ids.end();
      if (!stops && a.length < context_) going_on.push_back(a);
    }
    *group = std::move(going_on);
    return absl::OkStatus();
  }

  Execution& execution_;
  const GenerationPieces& pieces_;
  const GenerationOptions& options_;
  const absl::Span<const std::vector<int32_t>> prompts_;
  const int64_t sequences_;
  const int64_t context_;  // tokens of one sequence that the cache holds
  std::vector<std::vector<int32_t>> results_;
  std::vector<float> logits_;
};

}  // namespace

absl::StatusOr<std::vector<std::vector<int32_t>>> Generate(
    Execution* execution, absl::Span<const std::vector<int32_t>> prompts,
    const GenerationOptions& options) {
  return GenerationRun(execution, prompts, options).Run();
}

}  // namespace qlora::engine
