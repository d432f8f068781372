// The weights that a 4-bit run computes with: quantized as the job says, or as the checkpoint
// stores them, and rounded as its products read them. In memory is one layer in 4 bits.

#ifndef QLORA_ENGINE_MERGE_DEQUANTIZED_WEIGHTS_H_
#define QLORA_ENGINE_MERGE_DEQUANTIZED_WEIGHTS_H_

#include <memory>
#include <string>

#include "engine/drift/layer_run.h"
#include "engine/merge/base_weights.h"
#include "engine/model/unpack_weight.h"

namespace qlora::engine {

class DequantizedWeights : public BaseWeights {
 public:
  // `form`, which has a quantization and no adapter, and what it borrows must outlive it.
  static absl::StatusOr<std::unique_ptr<DequantizedWeights>> Create(const StreamContext& context,
                                                                    const ModelForm& form);

  absl::StatusOr<Dtype> TypeOf(const WeightRow& row) const override;
  bool Replaces(const WeightRow& row) const override;
  absl::Status Read(const WeightRow& row, int64_t first, absl::Span<float> values) override;

 private:
  explicit DequantizedWeights(const ModelForm& form) : form_(form), stored_(*form.model) {}
  absl::Status Load(const WeightRow& row);

  const ModelForm& form_;
  StoredWeights stored_;  // what is not in 4 bits
  std::unique_ptr<LayerRun> layers_;
  int64_t layer_ = -1;  // in the slots
  std::string name_;    // of the weight in `weight_`
  HostWeight weight_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MERGE_DEQUANTIZED_WEIGHTS_H_
