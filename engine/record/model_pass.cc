#include "engine/record/model_pass.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace qlora::engine {

using kernels::AdapterSegment;
using kernels::ConstTensor;
using kernels::DType;
using kernels::Tensor;

namespace {

// Logits of one chunk of the loss are kept within this; at least kMinLossRows rows, so that the
// product stays a matmul.
constexpr int64_t kLossChunkBytes = int64_t{64} << 20;
constexpr int64_t kMinLossRows = 64;

}  // namespace

Tensor ModelPass::Activation(const char* name, int64_t cols, int64_t layer) {
  return r_.Transient(layer < 0 ? std::string(name) : absl::StrCat("layer ", layer, " ", name),
                      s_.options.compute, batch_.capacity.tokens, cols, int(layer));
}

Tensor ModelPass::LinearInput(const char* name, int64_t cols, int64_t layer) {
  Tensor t = Activation(name, kernels::PitchWithTail(cols, tail_), layer);
  t.cols = cols;
  return t;
}

Tensor ModelPass::Behind(Tensor t) {
  return kernels::Slice(t, 0, t.rows, t.cols, t.pitch - t.cols);
}

// Asked of the ops before there is memory for them.
int64_t ModelPass::TailColumns() const {
  const auto shape = [&](int64_t cols) {
    return Tensor{nullptr, s_.options.compute, batch_.capacity.tokens, cols, cols};
  };
  int64_t most = 0;
  for (size_t weight = 0; weight < s_.weights.size(); ++weight) {
    if (s_.adapters_of[weight].empty()) continue;
    const kernels::LinearBase& base = s_.weights[weight].base;
    std::vector<AdapterSegment> adapters;
    std::vector<Tensor> products;
    for (const AdapterIndex& adapter : s_.adapters_of[weight]) {
      adapters.push_back(Segment(adapter));
      products.push_back(shape(adapters.back().a.rows));
    }
    const int64_t forward = r_.TailColumns(kernels::LinearForward{.x = shape(base.in_features),
                                                                  .base = base,
                                                                  .adapters = adapters,
                                                                  .low = products,
                                                                  .y = shape(base.out_features)});
    const int64_t backward =
        r_.TailColumns(kernels::LinearBackwardInput{.dy = shape(base.out_features),
                                                    .base = base,
                                                    .adapters = adapters,
                                                    .up = products,
                                                    .dx = shape(base.in_features)});
    most = std::max({most, forward, backward});
  }
  return most;
}

AdapterSegment ModelPass::Segment(const AdapterIndex& adapter) const {
  AdapterSegment segment = s_.Adapter(adapter).segment;
  // One alone has all rows.
  if (batch_.courses > 1) {
    segment.rows = SliceRows(batch_.token_segments, adapter.course, 1);
    segment.share = 1.0f / float(batch_.courses);
  }
  if (dropout_ && segment.dropout.probability > 0) {
    segment.dropout.counter = SliceRows(batch_.random_counters, adapter.course, 1);
  } else {
    segment.dropout = {};
  }
  return segment;
}

ConstTensor ModelPass::Bias(WeightRole role, int64_t layer) const {
  const int64_t index = s_.Find(role, layer);
  return index < 0 ? ConstTensor{} : s_.weights[index].dense;
}

Tensor ModelPass::Linear(WeightRole role, WeightRole bias_role, int64_t layer, Tensor x,
                         const char* name, LinearTrace* trace) {
  const int64_t index = s_.Find(role, layer);
  const WeightSlot& weight = s_.weights[index];
  trace->weight = index;
  trace->x = x;
  kernels::LinearForward op{
      .x = x, .base = weight.base, .bias = Bias(bias_role, layer), .live_rows = batch_.live_tokens};
  const std::vector<AdapterIndex>& adapters = s_.adapters_of[index];
  std::vector<Tensor> given = std::exchange(given_low_[index], {});
  given.resize(adapters.size());
  for (size_t i = 0; i < adapters.size(); ++i) {
    AdapterSegment& segment = op.adapters.emplace_back(Segment(adapters[i]));
    segment.given_low = given[i];
    op.low.push_back(given[i] ? Tensor{} : AdapterProduct(segment, layer));
    trace->low.push_back(given[i] ? given[i] : op.low[i]);
  }
  if (!op.adapters.empty()) op.tail = Behind(x);
  // The gradients of these two take their place.
  const bool is_gate_or_up = role == WeightRole::kGate || role == WeightRole::kUp;
  op.y = is_gate_or_up ? LinearInput(name, weight.row.rows, layer)
                       : Activation(name, weight.row.rows, layer);
  const Tensor y = op.y;
  r_.Emit(std::move(op), int(layer));
  return y;
}

Tensor ModelPass::AdapterProduct(const AdapterSegment& segment, int64_t layer) {
  return Activation("adapter product", segment.a.rows, layer);
}

std::vector<kernels::FirstProduct> ModelPass::FirstProducts(
    const kernels::RmsNormForward& norm, int64_t layer, std::initializer_list<WeightRole> readers) {
  const int64_t most = r_.FirstProductRank(norm);
  std::vector<kernels::FirstProduct> products;
  for (const WeightRole reader : readers) {
    const int64_t index = s_.Find(reader, layer);
    std::vector<Tensor>& given = given_low_[index];
    given.clear();
    for (const AdapterIndex& adapter : s_.adapters_of[index]) {
      const AdapterSegment segment = Segment(adapter);
      Tensor& low = given.emplace_back();
      if (segment.a.rows > most) continue;
      low = AdapterProduct(segment, layer);
      products.push_back(
          {.a = segment.a, .rows = segment.rows, .dropout = segment.dropout, .low = low});
    }
  }
  return products;
}

void ModelPass::Norm(WeightRole role, int64_t layer, Tensor x, Tensor residual,
                     std::initializer_list<WeightRole> readers, Tensor* sum, Tensor* normed,
                     Tensor* rstd) {
  *sum = residual ? Activation("residual stream", spec_.hidden, layer) : x;
  *normed = LinearInput("normed", spec_.hidden, layer);
  *rstd = r_.Transient("rstd", DType::kF32, batch_.capacity.tokens, 1, int(layer));
  kernels::RmsNormForward op{.x = x,
                             .residual = residual,
                             .weight = Bias(role, layer),
                             .live_rows = batch_.live_tokens,
                             .epsilon = spec_.rms_epsilon,
                             .weight_offset = spec_.norm_offset,
                             .sum = residual ? *sum : Tensor{},
                             .y = *normed,
                             .rstd = *rstd};
  op.products = FirstProducts(op, layer, readers);
  r_.Emit(std::move(op), int(layer));
}

Tensor ModelPass::HeadNorm(WeightRole role, int64_t layer, Tensor x, Tensor* rstd) {
  const int64_t heads = x.cols / spec_.head_size;
  const int64_t rows = x.rows * heads;
  const Tensor y = Activation("head-normed", x.cols, layer);
  *rstd = r_.Transient("head rstd", DType::kF32, rows, 1, int(layer));
  r_.Emit(kernels::RmsNormForward{.x = Reshape(x, rows, spec_.head_size),
                                  .weight = Bias(role, layer),
                                  .live_rows = batch_.live_tokens,
                                  .rows_per_token = heads,
                                  .epsilon = spec_.rms_epsilon,
                                  .weight_offset = spec_.norm_offset,
                                  .y = Reshape(y, rows, spec_.head_size),
                                  .rstd = *rstd},
          int(layer));
  return y;
}

Tensor ModelPass::Rotate(Tensor x, int64_t layer, bool inverse, const char* name) {
  const Tensor y =
      x.pitch > x.cols ? LinearInput(name, x.cols, layer) : Activation(name, x.cols, layer);
  r_.Emit(kernels::Rope{.x = x,
                        .positions = batch_.positions,
                        .cos = s_.rope_cos,
                        .sin = s_.rope_sin,
                        .live_rows = batch_.live_tokens,
                        .head_size = spec_.head_size,
                        .inverse = inverse,
                        .y = y},
          int(layer));
  return y;
}

kernels::AttentionShape ModelPass::AttentionShapeOf(int64_t layer) const {
  return {.query_heads = spec_.query_heads,
          .kv_heads = spec_.kv_heads,
          .head_size = spec_.head_size,
          .scale = spec_.attention_scale,
          .softcap = spec_.attention_softcap,
          .window = spec_.window[layer],
          .longest = s_.options.rope_positions,
          .kernel = s_.options.attention};
}

void ModelPass::ForwardLayer(int64_t layer, int64_t window_of, Tensor x, Tensor residual,
                             const KvCache* cache, Tensor* mlp_out) {
  using enum WeightRole;
  LayerTrace& t = layers_.emplace_back();
  Norm(kInputNorm, layer, x, residual, {kQ, kK, kV}, &t.h, &t.normed, &t.rstd);

  t.q_raw = Linear(kQ, kQBias, layer, t.normed, "q", &t.lq);
  t.k_raw = Linear(kK, kKBias, layer, t.normed, "k", &t.lk);
  t.v = Linear(kV, kVBias, layer, t.normed, "v", &t.lv);
  Tensor q = t.q_raw, k = t.k_raw;
  if (spec_.qk_norm) {
    q = HeadNorm(kQNorm, layer, q, &t.q_rstd);
    k = HeadNorm(kKNorm, layer, k, &t.k_rstd);
  }
  t.q = Rotate(q, layer, false, "rotated q");
  t.k = Rotate(k, layer, false, "rotated k");

  ConstTensor keys = t.k, values = t.v;
  if (cache != nullptr) {
    for (const auto& [from, to] : {std::pair{t.k, cache->k[layer]}, {t.v, cache->v[layer]}}) {
      r_.Emit(kernels::KvAppend{.x = from,
                                .documents = batch_.documents,
                                .document_count = batch_.document_count,
                                .cache = to},
              int(layer));
    }
    keys = cache->k[layer], values = cache->v[layer];
  }
  t.o = LinearInput("attention", t.q.cols, layer);
  t.lse = r_.Transient("attention lse", DType::kF32, t.q.rows, spec_.query_heads, int(layer));
  kernels::AttentionShape shape = AttentionShapeOf(window_of);
  if (cache != nullptr) shape.kernel = kernels::AttentionKernel::kOwn;
  r_.Emit(kernels::AttentionForward{.q = t.q,
                                    .k = keys,
                                    .v = values,
                                    .documents = batch_.documents,
                                    .document_count = batch_.document_count,
                                    .shape = shape,
                                    .o = t.o,
                                    .lse = t.lse},
          int(layer));
  t.attended = Linear(kO, kOBias, layer, t.o, "attention out", &t.lo);

  Norm(kPostAttentionNorm, layer, t.attended, t.h, {kGate, kUp}, &t.h2, &t.normed2, &t.rstd2);
  t.gate = Linear(kGate, kGateBias, layer, t.normed2, "gate", &t.lgate);
  t.up = Linear(kUp, kUpBias, layer, t.normed2, "up", &t.lup);
  t.activated = LinearInput("activated", spec_.intermediate, layer);
  r_.Emit(kernels::GatedActivationForward{.gate = t.gate,
                                          .up = t.up,
                                          .live_rows = batch_.live_tokens,
                                          .activation = spec_.activation,
                                          .out = t.activated},
          int(layer));
  *mlp_out = Linear(kDown, kDownBias, layer, t.activated, "mlp out", &t.ldown);
}

Tensor ModelPass::Embed(Tensor x) {
  if (!x) x = Activation("embedded", spec_.hidden, -1);
  r_.Emit(kernels::EmbeddingForward{.ids = batch_.ids,
                                    .table = s_.weights[s_.Find(WeightRole::kEmbedding, -1)].dense,
                                    .live_rows = batch_.live_tokens,
                                    .scale = spec_.embedding_scale,
                                    .y = x});
  return x;
}

void ModelPass::Layer(int64_t layer, int64_t window_of, Tensor before, Tensor after) {
  Tensor mlp_out;
  ForwardLayer(layer, window_of, before, {}, nullptr, &mlp_out);
  // In a whole pass the next norm adds the two; here a norm whose result nobody reads does.
  r_.Emit(kernels::RmsNormForward{.x = mlp_out,
                                  .residual = layers_.back().h2,
                                  .weight = Bias(WeightRole::kPostAttentionNorm, layer),
                                  .live_rows = batch_.live_tokens,
                                  .epsilon = spec_.rms_epsilon,
                                  .weight_offset = spec_.norm_offset,
                                  .sum = after,
                                  .y = Activation("normed", spec_.hidden, layer),
                                  .rstd = r_.Transient("rstd", DType::kF32, batch_.capacity.tokens,
                                                       1, int(layer))},
          int(layer));
}

Tensor ModelPass::FinalNorm(Tensor x, Tensor residual) {
  Tensor normed;
  Norm(WeightRole::kFinalNorm, -1, x, residual, {}, &final_sum_, &normed, &final_rstd_);
  return normed;
}

Tensor ModelPass::Forward(const KvCache* cache) {
  Tensor x = Embed();
  Tensor residual;
  for (int64_t layer = 0; layer < spec_.layers; ++layer) {
    Tensor mlp_out;
    ForwardLayer(layer, layer, x, residual, cache, &mlp_out);
    residual = layers_.back().h2;
    x = mlp_out;
  }
  return FinalNorm(x, residual);
}

void ModelPass::Loss(Tensor h, const LossOutputs& outputs, Tensor dh) {
  const WeightRole role = spec_.tied_embeddings ? WeightRole::kEmbedding : WeightRole::kHead;
  const WeightSlot& head = s_.weights[s_.Find(role, -1)];
  const int64_t chunk = std::max(kLossChunkBytes / (4 * spec_.vocab), kMinLossRows);
  kernels::LinearCrossEntropy op{
      .h = h,
      .head = head.base,
      .rows = batch_.rows,
      .targets = batch_.targets,
      .count = batch_.trained_count,
      .segments = batch_.courses > 1 ? ConstTensor(batch_.row_segments) : ConstTensor(),
      .live_rows = batch_.live_tokens,
      .chunk_rows = std::min(chunk, batch_.capacity.trained_rows),
      .softcap = spec_.logit_softcap,
      .accumulate_loss = outputs.accumulate,
      .loss = outputs.loss,
      .row_loss = outputs.row_loss,
      .correct = outputs.correct,
      .dh = dh};
  if (dh && head.parameter >= 0) op.dhead = s_.GradientView(head.parameter);
  r_.Emit(std::move(op));
}

void ModelPass::Logits(Tensor h, Tensor logits) {
  const WeightRole role = spec_.tied_embeddings ? WeightRole::kEmbedding : WeightRole::kHead;
  r_.Emit(kernels::LinearForward{.x = h,
                                 .base = s_.weights[s_.Find(role, -1)].base,
                                 .live_rows = batch_.live_tokens,
                                 .y = logits});
}

std::vector<BufferId> ModelPass::LayerInputs() const {
  std::vector<BufferId> inputs;
  for (const LayerTrace& t : layers_) inputs.push_back(Program::IdOf(t.h.data));
  return inputs;
}

std::vector<std::vector<std::vector<BufferId>>> ModelPass::RecomputeCandidates() const {
  std::vector<std::vector<std::vector<BufferId>>> levels(kRecomputeLevels);
  const auto ids = [](std::initializer_list<Tensor> views) {
    std::vector<BufferId> result;
    for (const Tensor& view : views) {
      if (view) result.push_back(Program::IdOf(view.data));
    }
    return result;
  };
  for (const LayerTrace& t : layers_) {
    levels[0].push_back(ids({t.normed, t.normed2, t.activated}));
    levels[1].push_back(ids({t.gate, t.up}));
    levels[2].push_back(ids({t.q_raw, t.k_raw, t.q, t.k, t.v}));
    levels[3].push_back(ids({t.o, t.lse, t.attended, t.h2}));
  }
  return levels;
}

}  // namespace qlora::engine
