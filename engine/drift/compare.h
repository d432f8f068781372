// Compares models on a data set: each against the first one, the baseline, in bounded memory.
//
// The residual streams of all samples pass through one layer at a time; the weights of that layer
// are read once for all models. Where the streams of all samples do not fit beside a layer, samples
// are taken in parts, and the checkpoint is read once for each part. With equal types the numbers
// are those of a whole forward pass, bit for bit.

#ifndef QLORA_ENGINE_DRIFT_COMPARE_H_
#define QLORA_ENGINE_DRIFT_COMPARE_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/data/batcher.h"
#include "engine/drift/model_form.h"
#include "engine/drift/stream.h"
#include "engine/drift/stream_error.h"
#include "engine/progress.h"

namespace qlora::engine {

// Sums over a sample's trained tokens.
struct SampleScore {
  int64_t tokens = 0;
  double loss = 0;  // Σ −log p
  double kl = 0;    // Σ KL(baseline ‖ this)
};

// How one model does. Means are per trained token.
struct ModelScore {
  int64_t tokens = 0, correct = 0, agree = 0;
  double loss = 0, kl = 0;           // sums
  std::vector<SampleScore> samples;  // by sample of the data set
  std::vector<StreamError> layers;   // of the residual stream behind each layer, all tokens

  double Loss() const { return loss / double(tokens); }
  double Perplexity() const;
  double Kl() const { return kl / double(tokens); }
  // Share of tokens whose most likely token is the baseline's.
  double Top1Agreement() const { return double(agree) / double(tokens); }
  double Accuracy() const { return double(correct) / double(tokens); }
};

// What each layer adds on its own: two forms get the baseline's residual stream before the layer,
// rounded to their compute type, which is the same.
struct Probe {
  size_t form = 0, reference = 0;
};

struct CompareOptions {
  std::optional<Probe> probe;
  Progress progress;
};

struct Comparison {
  std::vector<ModelScore> models;  // as the forms; the first is the baseline
  // By layer: ‖probe's − reference's‖ / ‖baseline's‖ of the residual stream behind it.
  std::vector<StreamError> alone;
  int64_t plan_bytes = 0;  // the most that any phase takes
  int64_t parts = 0;       // in which the samples were taken
};

// `batcher`: evaluation batches (EvalBatcherOptions) of `data`; context.capacity is its capacity.
// DoesNotFitError says what would have to be smaller, NumbersBadError which model's logits are not
// finite.
absl::StatusOr<Comparison> CompareModels(const StreamContext& context,
                                         absl::Span<const ModelForm> forms, const Dataset& data,
                                         const Batcher& batcher, const CompareOptions& options);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_COMPARE_H_
