#include "engine/record/check_size.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "proto/errors.h"

namespace qlora::engine {

absl::Status CheckSize(const ModelSpec& spec, const RecordOptions& options) {
  // Trained parameters lie in one flat buffer of fp32, whose parts have addresses of their own:
  // Program::kOffsetBits.
  constexpr double kMostTrained = double(int64_t{1} << Program::kOffsetBits) / 4;
  constexpr double kMostParameters = 1e12, kMostActivations = 1e18, kMostBuffers = 1e6;
  const double layers = double(spec.layers);
  double adapters = 0, adapted = 0, ranks = 0;
  for (const LoraTargets& lora : options.storage.lora) {
    adapters += double(lora.modules.size());
    adapted += double(lora.ParameterCount());
    for (const AdaptedModule& module : lora.modules) ranks += double(module.rank);
  }
  const double parameters = double(ParameterCount(spec));
  const bool is_full = options.storage.mode == proto::Mode::FULL && options.storage.training;
  // What a layer leaves for its backward, the gradients, and what is computed again, in fp32.
  const double heads = double((spec.query_heads + 2 * spec.kv_heads) * spec.head_size);
  const double width = 16.0 * (double(spec.hidden) + double(spec.intermediate) + heads);
  int64_t tokens = options.train.tokens;
  if (options.eval) tokens = std::max(tokens, options.eval->tokens);
  double activations = 4.0 * double(tokens) * (layers * width + 4 * ranks);
  if (options.eval_logits) activations += 4.0 * double(tokens) * double(spec.vocab);
  const double buffers = 100 * layers + 4 * adapters;
  if ((is_full ? parameters : adapted) <= kMostTrained && parameters <= kMostParameters &&
      activations <= kMostActivations && buffers <= kMostBuffers) {
    return absl::OkStatus();
  }
  return proto::DoesNotFitError(absl::StrFormat(
      "the run has %.3g parameters, %.3g of them trained, %.3g bytes of activations at %d tokens a "
      "micro-batch, and %.3g buffers; at most %.3g, %.3g, %.3g and %.3g can be planned for",
      parameters, is_full ? parameters : adapted, activations, tokens, buffers, kMostParameters,
      kMostTrained, kMostActivations, kMostBuffers));
}

}  // namespace qlora::engine
