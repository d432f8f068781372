#include <algorithm>
#include <utility>

#include "engine/record/model_pass.h"

namespace qlora::engine {

using kernels::DType;
using kernels::Tensor;

bool ModelPass::IsTrained(WeightRole role, int64_t layer) const {
  const int64_t index = s_.Find(role, layer);
  return index >= 0 && s_.weights[index].parameter >= 0;
}

// −1 where the embedding is trained: then nothing may be cut off.
int64_t ModelPass::LowestTrainedLayer() const {
  if (IsTrained(WeightRole::kEmbedding, -1)) return -1;
  int64_t lowest = spec_.layers;
  for (const LoraTargets& lora : s_.options.lora) {
    for (const AdaptedModule& module : lora.modules) lowest = std::min(lowest, module.layer);
  }
  return lowest;
}

void ModelPass::LinearBackward(const LinearTrace& trace, WeightRole bias_role, int64_t layer,
                               Tensor dy, Tensor dx, bool accumulate) {
  const WeightSlot& weight = s_.weights[trace.weight];
  const std::vector<AdapterIndex>& adapters = s_.adapters_of[trace.weight];
  std::vector<Tensor> up;
  if (dx || !adapters.empty()) {
    kernels::LinearBackwardInput op{.dy = dy,
                                    .base = weight.base,
                                    .live_rows = batch_.live_tokens,
                                    .accumulate = accumulate,
                                    .dx = dx};
    for (const AdapterIndex& adapter : adapters) {
      op.adapters.push_back(Segment(adapter));
      up.push_back(Activation("adapter gradient", op.adapters.back().a.rows, layer));
    }
    op.up = up;
    if (!adapters.empty()) op.tail = Behind(dy);
    r_.Emit(std::move(op), int(layer));
  }
  for (size_t i = 0; i < adapters.size(); ++i) {
    const AdapterSlot& slot = s_.Adapter(adapters[i]);
    const kernels::AdapterSegment segment = Segment(adapters[i]);
    r_.Emit(kernels::LinearBackwardAdapter{.x = trace.x,
                                           .dy = dy,
                                           .low = trace.low[i],
                                           .up = up[i],
                                           .live_rows = batch_.live_tokens,
                                           .rows = segment.rows,
                                           .share = segment.share,
                                           .scale = segment.scale,
                                           .dropout = segment.dropout,
                                           .accumulate = true,
                                           .da = s_.GradientView(slot.a_parameter),
                                           .db = s_.GradientView(slot.b_parameter)},
            int(layer));
  }
  if (weight.parameter >= 0) {
    const int64_t bias = s_.Find(bias_role, layer);
    r_.Emit(
        kernels::LinearBackwardWeight{
            .x = trace.x,
            .dy = dy,
            .live_rows = batch_.live_tokens,
            .accumulate = true,
            .dweight = s_.GradientView(weight.parameter),
            .dbias = bias >= 0 ? s_.GradientView(s_.weights[bias].parameter) : Tensor{}},
        int(layer));
  }
}

Tensor ModelPass::NormBackward(WeightRole role, int64_t layer, Tensor dy, Tensor x, Tensor rstd,
                               Tensor dresidual, const char* name) {
  const WeightSlot& weight = s_.weights[s_.Find(role, layer)];
  const Tensor dx = LinearInput(name, x.cols, layer);
  r_.Emit(
      kernels::RmsNormBackward{
          .dy = dy,
          .x = x,
          .weight = weight.dense,
          .rstd = rstd,
          .dresidual = dresidual,
          .live_rows = batch_.live_tokens,
          .weight_offset = spec_.norm_offset,
          .dx = dx,
          .dweight = weight.parameter >= 0 ? s_.GradientView(weight.parameter) : Tensor{}},
      int(layer));
  return dx;
}

Tensor ModelPass::HeadNormBackward(WeightRole role, int64_t layer, Tensor dy, Tensor x, Tensor rstd,
                                   const char* name) {
  const WeightSlot& weight = s_.weights[s_.Find(role, layer)];
  const int64_t heads = x.cols / spec_.head_size;
  const int64_t rows = x.rows * heads;
  const Tensor dx = Activation(name, x.cols, layer);
  r_.Emit(
      kernels::RmsNormBackward{
          .dy = Reshape(dy, rows, spec_.head_size),
          .x = Reshape(x, rows, spec_.head_size),
          .weight = weight.dense,
          .rstd = rstd,
          .live_rows = batch_.live_tokens,
          .rows_per_token = heads,
          .weight_offset = spec_.norm_offset,
          .dx = Reshape(dx, rows, spec_.head_size),
          .dweight = weight.parameter >= 0 ? s_.GradientView(weight.parameter) : Tensor{}},
      int(layer));
  return dx;
}

// From the gradient of (h2 + mlp out) to that of h.
Tensor ModelPass::BackwardLayer(int64_t layer, Tensor dh) {
  using enum WeightRole;
  const LayerTrace& t = layers_[layer];

  const Tensor dactivated = Activation("d activated", spec_.intermediate, layer);
  LinearBackward(t.ldown, kDownBias, layer, dh, dactivated, false);
  const Tensor dgate = LinearInput("d gate", spec_.intermediate, layer);
  const Tensor dup = LinearInput("d up", spec_.intermediate, layer);
  r_.Emit(kernels::GatedActivationBackward{.gate = t.gate,
                                           .up = t.up,
                                           .dout = dactivated,
                                           .live_rows = batch_.live_tokens,
                                           .activation = spec_.activation,
                                           .dgate = dgate,
                                           .dup = dup},
          int(layer));
  const Tensor dnormed2 = Activation("d normed", spec_.hidden, layer);
  LinearBackward(t.lgate, kGateBias, layer, dgate, dnormed2, false);
  LinearBackward(t.lup, kUpBias, layer, dup, dnormed2, true);
  const Tensor dh2 =
      NormBackward(kPostAttentionNorm, layer, dnormed2, t.h2, t.rstd2, dh, "d residual");

  const Tensor d_o = Activation("d attention", t.o.cols, layer);
  LinearBackward(t.lo, kOBias, layer, dh2, d_o, false);
  // A norm over heads wants rows without gaps.
  const auto rotated = [&](const char* name, int64_t cols) {
    return spec_.qk_norm ? Activation(name, cols, layer) : LinearInput(name, cols, layer);
  };
  Tensor dq = rotated("d rotated q", t.q.cols);
  Tensor dk = rotated("d rotated k", t.k.cols);
  const Tensor dv = LinearInput("d v", t.v.cols, layer);
  r_.Emit(kernels::AttentionBackward{.q = t.q,
                                     .k = t.k,
                                     .v = t.v,
                                     .o = t.o,
                                     .dout = d_o,
                                     .lse = t.lse,
                                     .documents = batch_.documents,
                                     .document_count = batch_.document_count,
                                     .shape = AttentionShapeOf(layer),
                                     .dq = dq,
                                     .dk = dk,
                                     .dv = dv},
          int(layer));
  dq = Rotate(dq, layer, true, "d q");
  dk = Rotate(dk, layer, true, "d k");
  if (spec_.qk_norm) {
    dq = HeadNormBackward(kQNorm, layer, dq, t.q_raw, t.q_rstd, "d raw q");
    dk = HeadNormBackward(kKNorm, layer, dk, t.k_raw, t.k_rstd, "d raw k");
  }
  const bool is_lowest = layer == LowestTrainedLayer();
  const Tensor dnormed = is_lowest ? Tensor{} : Activation("d normed", spec_.hidden, layer);
  LinearBackward(t.lq, kQBias, layer, dq, dnormed, false);
  LinearBackward(t.lk, kKBias, layer, dk, dnormed, true);
  LinearBackward(t.lv, kVBias, layer, dv, dnormed, true);
  if (is_lowest) return {};
  return NormBackward(kInputNorm, layer, dnormed, t.h, t.rstd, dh2, "d residual");
}

void ModelPass::Backward(Tensor dh) {
  Tensor d =
      NormBackward(WeightRole::kFinalNorm, -1, dh, final_sum_, final_rstd_, {}, "d residual");
  const int64_t lowest = LowestTrainedLayer();
  for (int64_t layer = spec_.layers - 1; layer >= std::max<int64_t>(lowest, 0); --layer) {
    d = BackwardLayer(layer, d);
  }
  if (lowest >= 0) return;
  const WeightSlot& embedding = s_.weights[s_.Find(WeightRole::kEmbedding, -1)];
  r_.Emit(kernels::EmbeddingBackward{.ids = batch_.ids,
                                     .dy = d,
                                     .live_rows = batch_.live_tokens,
                                     .scale = spec_.embedding_scale,
                                     .dtable = s_.GradientView(embedding.parameter)});
}

}  // namespace qlora::engine
