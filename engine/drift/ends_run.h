// The two ends of a model that passes through memory in parts: token ids to the residual stream,
// and the residual stream to logits.

#ifndef QLORA_ENGINE_DRIFT_ENDS_RUN_H_
#define QLORA_ENGINE_DRIFT_ENDS_RUN_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/drift/model_form.h"
#include "engine/drift/stream.h"

namespace qlora::engine {

// Forms with equal ends (checkpoint, types) share them: by form, the first form with its ends.
std::vector<size_t> EndsOf(absl::Span<const ModelForm> forms);

// The embedding of one form.
class EmbeddingRun {
 public:
  static absl::StatusOr<std::unique_ptr<EmbeddingRun>> Create(const StreamContext& context,
                                                              const ModelForm& form);
  const Plan& plan() const { return phase_->plan(); }
  // Allocates and loads.
  absl::Status Open();
  // Into `stream`: tokens · hidden numbers of the form's compute type.
  absl::Status Run(const MicroBatchInputs& batch, void* stream, int64_t bytes);

 private:
  const ModelForm* form_ = nullptr;
  BatchViews batch_;
  kernels::Tensor stream_;
  std::unique_ptr<StreamPhase> phase_;
};

// Final norm and head of several forms, for up to `rows` rows of the residual stream at a time.
class HeadRun {
 public:
  static absl::StatusOr<std::unique_ptr<HeadRun>> Create(const StreamContext& context,
                                                         absl::Span<const ModelForm> forms,
                                                         int64_t rows);
  const Plan& plan() const { return phase_->plan(); }
  absl::Status Open();
  void Close() { phase_->Close(); }
  // `stream`: rows · hidden numbers of the form's compute type; `logits`: rows · vocab, before the
  // softcap.
  absl::Status Run(size_t form, const void* stream, int64_t rows, float* logits);

 private:
  struct End {
    const ModelForm* form = nullptr;
    Storage storage;
    kernels::Tensor stream;
    int64_t piece = -1;
  };
  RecordedRun Record(const StreamContext& context, int64_t rows, const KernelSelection& kernels);

  std::vector<End> ends_;
  std::vector<size_t> end_of_;  // by form
  BatchViews batch_;
  kernels::Tensor logits_;
  std::unique_ptr<StreamPhase> phase_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_ENDS_RUN_H_
