#include "engine/merge/dequantized_weights.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/drift/weight_error.h"
#include "engine/model/prequantized.h"
#include "quant/float_formats.h"

namespace qlora::engine {

absl::StatusOr<std::unique_ptr<DequantizedWeights>> DequantizedWeights::Create(
    const StreamContext& context, const ModelForm& form) {
  std::unique_ptr<DequantizedWeights> weights(new DequantizedWeights(form));
  absl::StatusOr<std::unique_ptr<LayerRun>> layers =
      LayerRun::Create(context, absl::MakeConstSpan(&form, 1), /*with_pieces=*/false);
  if (!layers.ok()) return layers.status();
  weights->layers_ = *std::move(layers);
  if (absl::Status s = weights->layers_->Open(); !s.ok()) return s;
  return weights;
}

bool DequantizedWeights::Replaces(const WeightRow& row) const {
  return row.quantizable &&
         std::find(form_.kept.begin(), form_.kept.end(), row.module) == form_.kept.end();
}

absl::StatusOr<Dtype> DequantizedWeights::TypeOf(const WeightRow& row) const {
  if (!IsPrequantized(*form_.model, row)) return stored_.TypeOf(row);
  std::vector<std::string> warnings;
  const absl::StatusOr<PrequantizedWeight> weight = ReadPrequantized(*form_.model, row, &warnings);
  if (!weight.ok()) return weight.status();
  return weight->original_dtype;
}

absl::Status DequantizedWeights::Load(const WeightRow& row) {
  if (layer_ != row.layer) {
    if (absl::Status s = layers_->Load(row.layer); !s.ok()) return s;
    layer_ = row.layer;
  }
  const std::vector<WeightRow>& rows = layers_->RowsOf(row.layer);
  const auto found = std::find_if(rows.begin(), rows.end(),
                                  [&](const WeightRow& r) { return r.name == row.name; });
  if (found == rows.end()) {
    return absl::InternalError(absl::StrCat("no slot for ", row.name));
  }
  const Storage& storage = layers_->StorageOf(0);
  absl::StatusOr<HostWeight> weight = UnpackToHost(storage.weights[found - rows.begin()],
                                                   storage.dynamic_map, layers_->execution());
  if (!weight.ok()) return weight.status();
  weight_ = *std::move(weight);
  name_ = row.name;
  return absl::OkStatus();
}

absl::Status DequantizedWeights::Read(const WeightRow& row, int64_t first,
                                      absl::Span<float> values) {
  if (!Replaces(row)) return stored_.Read(row, first, values);
  if (name_ != row.name) {
    if (absl::Status s = Load(row); !s.ok()) return s;
  }
  DequantizeRange(weight_.View(), first * row.cols, int64_t(values.size()), values.data());
  if (form_.compute != kernels::DType::kBf16) return absl::OkStatus();
  for (float& value : values) value = quant::F32FromBf16(quant::Bf16FromF32(value));
  return absl::OkStatus();
}

}  // namespace qlora::engine
