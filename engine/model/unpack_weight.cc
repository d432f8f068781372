#include "engine/model/unpack_weight.h"

#include "absl/strings/str_cat.h"

namespace qlora::engine {
namespace {

using kernels::BufferBytes;
using kernels::Tensor;

template <class T>
absl::Status CopyToHost(kernels::Device& device, const Tensor& view, std::vector<T>* to) {
  to->resize(view.Count());
  return device.CopyOut(to->data(), view.data, view.Extent());
}

}  // namespace

int64_t UnpackWeightBytes(const WeightRow& row, const quant::QuantSpec& spec) {
  const int64_t n = row.Count();
  return BufferBytes(spec.CodeBytes(n)) +
         BufferBytes(spec.BlockCount(n) * (spec.double_quant ? 1 : 4)) +
         BufferBytes(spec.GroupCount(n) * 4) + BufferBytes(4);
}

absl::StatusOr<kernels::QuantizedOutput> UnpackWeight(const WeightSlot& slot, Tensor dynamic_map,
                                                      Execution* execution) {
  const quant::QuantSpec& spec = slot.base.quantized.spec;
  const int64_t needed = UnpackWeightBytes(slot.row, spec);
  if (needed > execution->plan().placement.bytes) {
    return absl::InternalError(absl::StrCat("tensor ", slot.row.name, " needs ", needed,
                                            " bytes to be unpacked; the plan has ",
                                            execution->plan().placement.bytes));
  }
  uint8_t* next = static_cast<uint8_t*>(execution->LoadingScratch());
  const auto place = [&](const Tensor& like) {
    Tensor view = like;
    view.data = next;
    next += BufferBytes(like.Extent());
    return view;
  };
  kernels::Unpack op{.from = {}, .rows = slot.row.rows, .cols = slot.row.cols, .to = {}};
  op.from.spec = spec;
  op.from.codes = execution->Bind(slot.quantized.codes);
  op.from.absmax = execution->Bind(slot.quantized.absmax);
  op.to.codes = place(slot.quantized.codes);
  op.to.absmax = place(slot.quantized.absmax);
  if (spec.double_quant) {
    op.from.nested_absmax = execution->Bind(slot.quantized.nested_absmax);
    op.from.offset = execution->Bind(slot.quantized.offset);
    op.from.map = execution->Bind(dynamic_map);
    op.to.nested_absmax = place(slot.quantized.nested_absmax);
    op.to.offset = place(slot.quantized.offset);
  }
  if (absl::Status s = execution->RunOnce({op}); !s.ok()) return s;
  return op.to;
}

quant::ConstQuantizedView HostWeight::View() const {
  return {.spec = spec,
          .codes = codes.data(),
          .absmax_f32 = absmax_f32.data(),
          .absmax_u8 = absmax_u8.data(),
          .nested_absmax = nested_absmax.data(),
          .nested_offset = &offset};
}

absl::StatusOr<HostWeight> UnpackToHost(const WeightSlot& slot, Tensor dynamic_map,
                                        Execution* execution) {
  absl::StatusOr<kernels::QuantizedOutput> parts = UnpackWeight(slot, dynamic_map, execution);
  if (!parts.ok()) return parts.status();
  HostWeight weight{.spec = slot.base.quantized.spec};
  kernels::Device& device = execution->device();
  if (absl::Status s = CopyToHost(device, parts->codes, &weight.codes); !s.ok()) return s;
  if (!weight.spec.double_quant) {
    if (absl::Status s = CopyToHost(device, parts->absmax, &weight.absmax_f32); !s.ok()) return s;
    return weight;
  }
  if (absl::Status s = CopyToHost(device, parts->absmax, &weight.absmax_u8); !s.ok()) return s;
  if (absl::Status s = CopyToHost(device, parts->nested_absmax, &weight.nested_absmax); !s.ok()) {
    return s;
  }
  if (absl::Status s = device.CopyOut(&weight.offset, parts->offset.data, 4); !s.ok()) return s;
  return weight;
}

}  // namespace qlora::engine
