#include "engine/drift/drift_forms.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/drift/drift_text.h"
#include "engine/drift/weight_error.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using quant::QuantSpec;
using quant::QuantType;

void AddOnce(const QuantSpec& spec, std::vector<QuantSpec>* specs) {
  if (std::find(specs->begin(), specs->end(), spec) == specs->end()) specs->push_back(spec);
}

}  // namespace

StreamContext StreamContextOf(const Setup& setup) {
  return {.spec = &setup.spec,
          .device = setup.device.get(),
          .limits = setup.limits,
          .kernels = setup.job.kernel_selection(),
          .capacity = *setup.record.eval,
          .rope_positions = setup.record.storage.rope_positions,
          .threads = setup.job.num_threads()};
}

ModelForm BaselineForm(const Setup& setup) {
  ModelForm form{.name = absl::StrCat(
                     "baseline, ", proto::BaselineDtype::Value_Name(setup.job.drift().baseline())),
                 .model = &*setup.model,
                 .compute = DType::kF32};
  switch (setup.job.drift().baseline()) {
    case proto::BaselineDtype::BF16:
      form.dense = DType::kBf16;
      break;
    case proto::BaselineDtype::FP32:
      form.dense = DType::kF32;
      break;
    default:
      form.dense = DType::kF16;
  }
  return form;
}

ModelForm SixteenBitForm(const Setup& setup) {
  return {.name = absl::StrCat("not quantized, compute ",
                               proto::ComputeDtype::Value_Name(setup.job.compute_dtype())),
          .model = &*setup.model,
          .compute = setup.record.storage.compute,
          .dense = setup.spec.stored_dtype};
}

ModelForm QuantizedForm(const Setup& setup, const QuantSpec& spec) {
  ModelForm form = SixteenBitForm(setup);
  form.name = Describe(spec);
  form.quant = spec;
  form.kept = setup.spec.kept_in_16_bits;
  return form;
}

ModelForm TrainedForm(const Setup& setup) {
  return setup.job.mode() == proto::Mode::QLORA ? QuantizedForm(setup, setup.record.storage.quant)
                                                : SixteenBitForm(setup);
}

ModelForm KeptForm(const Setup& setup, const std::vector<int64_t>& layers) {
  ModelForm form = QuantizedForm(setup, setup.record.storage.quant);
  for (const WeightRow& row : WeightRows(setup.spec)) {
    if (row.quantizable && std::find(layers.begin(), layers.end(), row.layer) != layers.end()) {
      form.kept.push_back(row.module);
    }
  }
  return form;
}

std::vector<QuantSpec> PublishedOrder(int block_size) {
  std::vector<QuantSpec> order;
  for (const QuantType type :
       {QuantType::kInt4, QuantType::kFp4E2M1, QuantType::kFp4E3M0, QuantType::kNf4}) {
    order.push_back({.type = type, .block_size = block_size, .double_quant = true});
  }
  return order;
}

std::vector<QuantSpec> SpecsOf(const Setup& setup) {
  const QuantSpec& own = setup.record.storage.quant;
  std::vector<QuantSpec> specs = {own};
  if (!setup.job.drift().compare_types()) return specs;
  std::vector<QuantSpec> types = PublishedOrder(own.block_size);
  std::reverse(types.begin(), types.end());
  AddOnce(types[0], &specs);
  AddOnce({.type = QuantType::kNf4, .block_size = own.block_size, .double_quant = false}, &specs);
  for (const QuantSpec& type : types) AddOnce(type, &specs);
  for (const int size : setup.job.drift().block_sizes()) {
    QuantSpec spec = own;
    spec.block_size = size;
    AddOnce(spec, &specs);
  }
  return specs;
}

int64_t LinearElements(const ModelSpec& spec) {
  int64_t elements = 0;
  for (const WeightRow& row : WeightRows(spec)) elements += row.lora_target ? row.Count() : 0;
  return elements;
}

int64_t LinearBytes(const ModelSpec& spec, const ModelForm& form) {
  // As Storage keeps them: of a bf16 run no matrix is wider.
  const bool narrow = form.compute == DType::kBf16 && form.dense == DType::kF32;
  const int64_t size = kernels::SizeOf(narrow ? DType::kBf16 : form.dense);
  int64_t bytes = 0;
  for (const WeightRow& row : WeightRows(spec)) {
    if (!row.lora_target) continue;
    const bool kept = std::find(form.kept.begin(), form.kept.end(), row.module) != form.kept.end();
    bytes += form.quant && !kept ? QuantizedBytes(*form.quant, row.Count()) : size * row.Count();
  }
  return bytes;
}

}  // namespace qlora::engine
