#include "engine/record/storage.h"

#include <utility>

namespace qlora::engine {
namespace {

using kernels::ConstTensor;
using kernels::DType;
using kernels::LinearBase;
using kernels::Tensor;

class Builder {
 public:
  Builder(Storage* storage, Program* program) : s_(*storage), program_(*program) {}

  void Build() {
    s_.dynamic_map =
        program_.AddBuffer("8-bit scale map", BufferClass::kTables, DType::kF32, 1, 256);
    const int64_t pairs = s_.spec.rope.rotary_dims / 2;
    s_.rope_cos = program_.AddBuffer("rotary cos", BufferClass::kTables, DType::kF32,
                                     s_.options.rope_positions, pairs);
    s_.rope_sin = program_.AddBuffer("rotary sin", BufferClass::kTables, DType::kF32,
                                     s_.options.rope_positions, pairs);
    for (WeightRow& row : WeightRows(s_.spec)) AddWeight(std::move(row));
    AddAdapters();
    if (s_.space.size() > 0) AddStates();
    for (WeightSlot& slot : s_.weights) ResolveTrained(&slot);
    for (AdapterSlot& slot : s_.adapters) {
      slot.segment.a = s_.ComputeView(slot.a_parameter);
      slot.segment.b = s_.ComputeView(slot.b_parameter);
    }
  }

 private:
  void AddWeight(WeightRow row) {
    WeightSlot slot;
    slot.base.out_features = row.rows;
    slot.base.in_features = row.cols;
    if (s_.options.mode == proto::Mode::FULL && s_.options.training) {
      // As Transformers' Trainer: no decay on norms and biases.
      const float decay = KindOf(row.role) == WeightKind::kMatrix ? s_.options.weight_decay : 0.0f;
      slot.parameter = s_.space.Add(row.name, row.rows, row.cols, decay);
    } else if (s_.options.mode == proto::Mode::QLORA && row.quantizable) {
      AddQuantized(row, &slot);
    } else {
      slot.frozen = program_.AddBuffer(row.name, BufferClass::kFrozenWeights, FrozenType(row.role),
                                       row.rows, row.cols, int(row.layer));
      SetDense(slot.frozen, &slot);
    }
    slot.row = std::move(row);
    s_.weights.push_back(std::move(slot));
  }

  // In bf16 runs a matrix stored in fp32 is kept in bf16, the type its products use; vectors stay
  // as stored.
  DType FrozenType(WeightRole role) const {
    const bool narrow = s_.options.compute == DType::kBf16 && KindOf(role) == WeightKind::kMatrix &&
                        s_.spec.stored_dtype == DType::kF32;
    return narrow ? DType::kBf16 : s_.spec.stored_dtype;
  }

  static void SetDense(Tensor view, WeightSlot* slot) {
    slot->dense = view;
    slot->base.kind = LinearBase::Kind::kDense;
    slot->base.dense = view;
  }

  void AddQuantized(const WeightRow& row, WeightSlot* slot) {
    const quant::QuantSpec& spec = s_.options.quant;
    const int64_t n = row.Count();
    const auto add = [&](const char* part, DType dtype, int64_t count) {
      return program_.AddBuffer(row.name + part, BufferClass::kQuantizedWeights, dtype, 1, count,
                                int(row.layer));
    };
    kernels::QuantizedOutput& out = slot->quantized;
    kernels::QuantizedTensor& in = slot->base.quantized;
    out.codes = add("", DType::kU8, spec.CodeBytes(n));
    out.absmax = add(".absmax", spec.double_quant ? DType::kU8 : DType::kF32, spec.BlockCount(n));
    if (spec.double_quant) {
      out.nested_absmax = add(".nested_absmax", DType::kF32, spec.GroupCount(n));
      out.offset = add(".nested_offset", DType::kF32, 1);
      in.map = s_.dynamic_map;
    }
    in.codes = out.codes, in.absmax = out.absmax;
    in.nested_absmax = out.nested_absmax, in.offset = out.offset;
    in.spec = spec;
    slot->base.kind = LinearBase::Kind::kQuantized;
  }

  void AddAdapters() {
    s_.adapter_of.assign(s_.weights.size(), -1);
    const std::vector<AdaptedModule>& modules = s_.options.lora.modules;
    for (int64_t i = 0; i < int64_t(modules.size()); ++i) {
      const AdaptedModule& module = modules[i];
      AdapterSlot slot;
      slot.a_parameter =
          s_.space.Add(module.KeyA(), module.rank, module.in, s_.options.weight_decay);
      slot.b_parameter =
          s_.space.Add(module.KeyB(), module.out, module.rank, s_.options.weight_decay);
      slot.segment.scale = module.scaling;
      slot.segment.dropout.probability = s_.options.training ? s_.options.lora_dropout : 0.0f;
      slot.segment.dropout.key = uint32_t(i);
      s_.adapters.push_back(std::move(slot));
      s_.adapter_of[module.row] = i;
    }
  }

  void AddStates() {
    const int64_t n = s_.space.size();
    const auto flat = [&](const char* name, BufferClass c, DType dtype, int64_t count) {
      return program_.AddBuffer(name, c, dtype, 1, count);
    };
    const bool copy = s_.options.compute == DType::kBf16;
    // Without training the copy that forward reads is all there is.
    if (s_.options.training || !copy) {
      s_.master = flat("trained parameters", BufferClass::kMaster, DType::kF32, n);
    }
    if (copy) s_.compute = flat("trained parameters, bf16", BufferClass::kCompute, DType::kBf16, n);
    if (!s_.options.training) return;
    const DType state = s_.options.eight_bit_states ? DType::kU8 : DType::kF32;
    s_.m = flat("first moments", BufferClass::kOptimizer, state, n);
    s_.v = flat("second moments", BufferClass::kOptimizer, state, n);
    if (s_.options.eight_bit_states) {
      const int64_t blocks = n / kernels::kParameterBlock;
      s_.m_absmax = flat("first moments' scales", BufferClass::kOptimizer, DType::kF32, blocks);
      s_.v_absmax = flat("second moments' scales", BufferClass::kOptimizer, DType::kF32, blocks);
    }
    s_.gradient = flat("gradients", BufferClass::kGradients, DType::kF32, n);
    for (int64_t i = 0; i < s_.options.pending_gradients; ++i) {
      s_.pending_gradients.push_back(
          flat("gradients awaiting their pair", BufferClass::kGradients, DType::kF32, n));
    }
    s_.segments =
        program_.AddBuffer("parameter segments", BufferClass::kTables, DType::kU8,
                           int64_t(s_.space.Segments().size()), sizeof(kernels::ParameterSegment));
  }

  void ResolveTrained(WeightSlot* slot) {
    if (slot->parameter >= 0) SetDense(s_.ComputeView(slot->parameter), slot);
  }

  Storage& s_;
  Program& program_;
};

}  // namespace

int64_t Storage::Find(WeightRole role, int64_t layer) const {
  for (int64_t i = 0; i < int64_t(weights.size()); ++i) {
    if (weights[i].row.role == role && weights[i].row.layer == layer) return i;
  }
  return -1;
}

Tensor Storage::ComputeView(int64_t parameter) const {
  return space.View(parameter, compute ? compute : master);
}

Storage AddStorage(const ModelSpec& spec, const StorageOptions& options, Program* program) {
  Storage storage{.options = options, .spec = spec};
  Builder(&storage, program).Build();
  return storage;
}

}  // namespace qlora::engine
