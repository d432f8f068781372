#include "engine/model/prequantized.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/errors.h"
#include "proto/job.pb.h"

namespace qlora::engine {
namespace {

using kernels::ConstTensor;
using kernels::DType;

float FloatAt(const ShardedModel::Tensor& tensor, int64_t i) {
  float value;
  std::memcpy(&value, tensor.data() + i * 4, 4);
  return value;
}

absl::Status CheckScales(const PrequantizedWeight& weight) {
  const ShardedModel::Tensor& scales =
      weight.spec.double_quant ? weight.nested_absmax : weight.absmax;
  for (int64_t i = 0; i < scales.info->elements(); ++i) {
    const float value = FloatAt(scales, i);
    // The largest scale that a group can decode to.
    if (std::isfinite(std::fabs(value) + std::fabs(weight.offset))) continue;
    return proto::BadDataError(absl::StrCat(
        scales.file->path(), ": tensor ", scales.info->name, " holds ", value, " at element ", i,
        weight.spec.double_quant ? absl::StrCat(" (nested_offset ", weight.offset, ")") : "",
        ": scales must be finite"));
  }
  return absl::OkStatus();
}

int64_t Padded(int64_t bytes) {
  return (bytes + kernels::kBufferAlignment - 1) / kernels::kBufferAlignment *
         kernels::kBufferAlignment;
}

bool ReadsInPlace(const ShardedModel::Tensor& tensor, DType type, const kernels::Device& device) {
  return device.info().is_host && tensor.file->IsAligned(*tensor.info, kernels::SizeOf(type));
}

DType ScaleType(const quant::QuantSpec& spec) {
  return spec.double_quant ? DType::kU8 : DType::kF32;
}

const std::string& JobName(quant::QuantType type) {
  static constexpr proto::QuantType::Value kNames[] = {proto::QuantType::NF4, proto::QuantType::FP4,
                                                       proto::QuantType::FP4_E3M0,
                                                       proto::QuantType::INT4};
  return proto::QuantType::Value_Name(kNames[int(type)]);
}

}  // namespace

std::string QuantizationFields(const quant::QuantSpec& spec) {
  return absl::StrCat("quantization { bnb_4bit_quant_type: ", JobName(spec.type),
                      " block_size: ", spec.block_size,
                      " bnb_4bit_use_double_quant: ", spec.double_quant ? "true" : "false", " }");
}

std::string BaseFields(const quant::QuantSpec& spec, absl::Span<const std::string> kept) {
  return absl::StrCat(QuantizationFields(spec),
                      kept.empty() ? "" : absl::StrCat(" 16 bits: ", absl::StrJoin(kept, ", ")));
}

absl::Status CheckBitsandbytesHas(const quant::QuantSpec& spec) {
  if (spec.type == quant::QuantType::kNf4 || spec.type == quant::QuantType::kFp4E2M1) {
    return absl::OkStatus();
  }
  return proto::BadJobError(absl::StrCat(
      "quantization.bnb_4bit_quant_type: found ", JobName(spec.type),
      ", which bitsandbytes has not: no other program loads a checkpoint with it; allowed: NF4, "
      "FP4"));
}

absl::Status CheckPrequantized(const ShardedModel& model, const WeightRow& row,
                               const quant::QuantSpec& spec, std::vector<std::string>* warnings) {
  const absl::StatusOr<PrequantizedWeight> weight = ReadPrequantized(model, row, warnings);
  if (!weight.ok()) return weight.status();
  if (weight->spec == spec) return absl::OkStatus();
  return proto::BadJobError(absl::StrCat(
      weight->codes.file->path(), ": tensor ", row.name, " is stored with ",
      QuantizationFields(weight->spec), ", the job asks for ", QuantizationFields(spec),
      ": set the fields as stored, or use the checkpoint that this one was quantized from"));
}

int64_t LoadPrequantizedBytes(const ShardedModel& model, const WeightRow& row,
                              const quant::QuantSpec& spec, const kernels::Device& device) {
  int64_t bytes = kernels::kBufferAlignment;  // the offset
  const auto add = [&](const std::string& name, DType type, int64_t size) {
    const absl::StatusOr<ShardedModel::Tensor> tensor = model.Get(name);
    if (!tensor.ok() || !ReadsInPlace(*tensor, type, device)) bytes += Padded(size);
  };
  const int64_t n = row.Count();
  add(row.name, DType::kU8, spec.CodeBytes(n));
  add(row.name + ".absmax", ScaleType(spec), spec.BlockCount(n) * SizeOf(ScaleType(spec)));
  if (spec.double_quant) add(row.name + ".nested_absmax", DType::kF32, spec.GroupCount(n) * 4);
  return bytes;
}

absl::Status LoadPrequantized(const ShardedModel& model, const WeightSlot& slot,
                              const kernels::QuantizedOutput& to, uint8_t* scratch,
                              Execution* execution) {
  std::vector<std::string> warnings;  // CheckCheckpoint has passed them on
  const quant::QuantSpec& spec = slot.base.quantized.spec;
  if (absl::Status s = CheckPrequantized(model, slot.row, spec, &warnings); !s.ok()) return s;
  const PrequantizedWeight weight = *ReadPrequantized(model, slot.row, &warnings);
  if (absl::Status s = CheckScales(weight); !s.ok()) return s;

  kernels::Device& device = execution->device();
  uint8_t* next = scratch;
  absl::Status status;
  const auto stage = [&](const void* bytes, int64_t size) {
    uint8_t* at = next;
    next += Padded(size);
    status.Update(device.CopyIn(at, bytes, size));
    return at;
  };
  const auto place = [&](const ShardedModel::Tensor& tensor, DType type) -> ConstTensor {
    const int64_t count = tensor.info->bytes / kernels::SizeOf(type);
    const void* data = ReadsInPlace(tensor, type, device)
                           ? tensor.data()
                           : stage(tensor.data(), tensor.info->bytes);
    return {data, type, 1, count, count};
  };
  kernels::Pack op{.from = {}, .rows = slot.row.rows, .cols = slot.row.cols, .to = to};
  op.from.spec = spec;
  op.from.codes = place(weight.codes, DType::kU8);
  op.from.absmax = place(weight.absmax, ScaleType(spec));
  if (spec.double_quant) {
    op.from.nested_absmax = place(weight.nested_absmax, DType::kF32);
    op.from.offset = {stage(&weight.offset, 4), DType::kF32, 1, 1, 1};
    op.from.map = execution->Bind(execution->plan().run.storage.dynamic_map);
  }
  if (!status.ok()) return status;
  return execution->RunOnce({op});
}

}  // namespace qlora::engine
