#include "engine/merge/base_weights.h"

#include "absl/strings/str_cat.h"
#include "engine/input_error.h"
#include "engine/model/element_convert.h"

namespace qlora::engine {

absl::StatusOr<Dtype> StoredWeights::TypeOf(const WeightRow& row) const {
  const absl::StatusOr<ShardedModel::Tensor> tensor = model_.Get(row.name);
  if (!tensor.ok()) return AsInputError(tensor.status());
  return tensor->info->dtype;
}

absl::Status StoredWeights::Read(const WeightRow& row, int64_t first, absl::Span<float> values) {
  const absl::StatusOr<ShardedModel::Tensor> tensor = model_.Get(row.name);
  if (!tensor.ok()) return AsInputError(tensor.status());
  const kernels::DType type = *FloatType(tensor->info->dtype);
  const int64_t offset = first * row.cols * kernels::SizeOf(type);
  const int64_t bad = ConvertElements(type, tensor->data() + offset, int64_t(values.size()),
                                      kernels::DType::kF32, values.data());
  tensor->file->ReleasePages(
      tensor->bytes().subspan(offset, values.size() * kernels::SizeOf(type)));
  if (bad < 0) return absl::OkStatus();
  return proto::BadDataError(absl::StrCat(tensor->file->path(), ": tensor ", row.name,
                                          " holds NaN or infinity at element ",
                                          first * row.cols + bad, ": fetch the file again"));
}

}  // namespace qlora::engine
