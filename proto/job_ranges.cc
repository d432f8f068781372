#include "proto/job_ranges.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace qlora::proto {
namespace {

// Upper ends that no method gives are far above any sensible value: they catch slips (2e4 for 2e-4)
// and keep products of two fields within 64 bits.
constexpr int64_t kMaxSteps = 1'000'000'000;
constexpr int64_t kMaxSamples = 1'000'000'000'000;
constexpr int64_t kMaxTokens = 1 << 20;
constexpr int64_t kMaxRows = 1 << 16;

constexpr RealRange kReal[] = {
    {"lora.lora_alpha", 0, 1e6, /*min_open=*/true},
    {"lora.lora_dropout", 0, 1, false, /*max_open=*/true},
    {"training.learning_rate", 0, 1, /*min_open=*/true},
    {"training.warmup_ratio", 0, 1},
    {"training.max_grad_norm", 0, 1e6},
    {"training.num_train_epochs", 0, 1e5, /*min_open=*/true},
    {"training.weight_decay", 0, 1},
    {"training.adam_beta1", 0, 1, false, /*max_open=*/true},
    {"training.adam_beta2", 0, 1, false, /*max_open=*/true},
    {"training.adam_epsilon", 0, 0.1, /*min_open=*/true},
    {"data.eval_fraction", 0, 1, false, /*max_open=*/true},
    {"generate.temperature", 0, 100},
    {"generate.top_p", 0, 1, /*min_open=*/true},
    {"parallel.silence_seconds", 1, 86'400},
    // ln of a vocabulary is below 15: no loss moves by more than that.
    {"gates.max_eval_loss_increase", -100, 100},
    {"gates.min_exact_match", 0, 1},
    {"gates.max_kl", 0, 100},
    {"economics.calls_per_day", 0, 1e12},
    {"economics.price_per_million_prompt_tokens", 0, 1e9},
    {"economics.cost_per_hour", 0, 1e9},
    {"plan.memory_bytes_per_second", 1e6, 1e18},
    {"plan.flops_per_second", 1e6, 1e21},
    {"plan.link_bytes_per_second", 1e3, 1e15},
    {"plan.network_bytes_per_second", 1e3, 1e15},
    {"plan.network_latency_seconds", 0, 1},
    {"merge.max_loss_increase", 0, 100},
    {"drift.outlier_factor", 1, 1e6, /*min_open=*/true},
    // As the fields that they stand for.
    {"sweep.adapter.lora_alpha", 0, 1e6, /*min_open=*/true},
    {"sweep.adapter.lora_dropout", 0, 1, false, /*max_open=*/true},
    {"sweep.adapter.learning_rate", 0, 1, /*min_open=*/true},
    {"sweep.learning_rates", 0, 1, /*min_open=*/true},
    {"sweep.tolerance", 0, 1},
};

constexpr IntRange kInt[] = {
    // Philox takes 64 bits; the sign bit is left out so that every tool can read the number back.
    {"seed", 0, std::numeric_limits<int64_t>::max()},
    {"generate.seed", 0, std::numeric_limits<int64_t>::max()},
    {"num_threads", 0, 1024},
    {"quantization.block_size", 32, 4096},
    {"lora.r", 1, 1024},
    {"training.warmup_steps", 0, kMaxSteps},
    {"training.per_device_train_batch_size", 1, kMaxRows},
    {"training.gradient_accumulation_steps", 1, kMaxRows},
    {"training.max_steps", 1, kMaxSteps},
    {"training.logging_steps", 1, kMaxSteps},
    {"training.eval_steps", 0, kMaxSteps},
    {"training.save_steps", 0, kMaxSteps},
    {"training.save_total_limit", 1, 100'000},
    {"training.max_consecutive_nonfinite", 1, 1000},
    // Loss is on the next token, so one token alone has nothing to learn.
    {"data.max_length", 2, kMaxTokens},
    {"data.max_train_samples", 0, kMaxSamples},
    {"data.max_eval_samples", 0, kMaxSamples},
    {"eval.max_new_tokens", 1, kMaxTokens},
    {"eval.per_device_eval_batch_size", 1, kMaxRows},
    {"generate.max_new_tokens", 1, kMaxTokens},
    {"plan.world_size", 1, kMaxRanks},
    {"merge.max_samples", 0, kMaxSamples},
    {"drift.max_samples", 0, kMaxSamples},
    {"drift.block_sizes", 32, 4096},
    {"drift.keep_worst_layers", 1, 1000},
    {"drift.worst_samples", 0, 1'000'000},
    {"drift.apply_keep_worst_layers", 1, 1000},
    {"sweep.adapter.r", 1, 1024},
    {"sweep.adapter.seed", 0, std::numeric_limits<int64_t>::max()},
    {"sweep.ranks", 1, 1024},
    {"sweep.seeds", 0, std::numeric_limits<int64_t>::max()},
};

}  // namespace

bool RealRange::Contains(double x) const {
  // Written so that NaN fails.
  const bool above = min_open ? x > min : x >= min;
  const bool below = max_open ? x < max : x <= max;
  return above && below;
}

std::string RealRange::Text() const {
  return absl::StrFormat("%s%g, %g%s", min_open ? "(" : "[", min, max, max_open ? ")" : "]");
}

std::string IntRange::Text() const { return absl::StrCat(min, "..", max); }

absl::Span<const RealRange> RealRanges() { return kReal; }
absl::Span<const IntRange> IntRanges() { return kInt; }

const RealRange* FindRealRange(absl::string_view path) {
  for (const RealRange& range : kReal) {
    if (range.path == path) return &range;
  }
  return nullptr;
}

const IntRange* FindIntRange(absl::string_view path) {
  for (const IntRange& range : kInt) {
    if (range.path == path) return &range;
  }
  return nullptr;
}

}  // namespace qlora::proto
