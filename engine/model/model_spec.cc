#include "engine/model/model_spec.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace qlora::engine {
namespace {

// Builds the rows of one layer, or those outside of all layers (layer −1).
class RowList {
 public:
  RowList(std::vector<WeightRow>* rows, int64_t layer)
      : rows_(rows),
        layer_(layer),
        prefix_(layer < 0 ? "" : absl::StrCat("model.layers.", layer, ".")) {}

  void Matrix(WeightRole role, const std::string& module, int64_t rows, int64_t cols) {
    Add(role, module, ".weight", rows, cols);
  }
  void Norm(WeightRole role, const std::string& module, int64_t size) {
    Add(role, module, ".weight", 1, size);
  }
  void Linear(WeightRole role, WeightRole bias_role, const std::string& module, int64_t out,
              int64_t in, bool bias) {
    Add(role, module, ".weight", out, in);
    rows_->back().quantizable = true;
    rows_->back().lora_target = true;
    if (bias) Add(bias_role, module, ".bias", 1, out);
  }

 private:
  void Add(WeightRole role, const std::string& module, const char* tensor, int64_t rows,
           int64_t cols) {
    rows_->push_back({.name = absl::StrCat(prefix_, module, tensor),
                      .module = absl::StrCat(prefix_, module),
                      .role = role,
                      .layer = layer_,
                      .rows = rows,
                      .cols = cols});
  }

  std::vector<WeightRow>* rows_;
  int64_t layer_;
  std::string prefix_;
};

void AddLayer(const ModelSpec& spec, int64_t layer, std::vector<WeightRow>* rows) {
  using enum WeightRole;
  const int64_t hidden = spec.hidden, intermediate = spec.intermediate;
  const int64_t q = spec.query_heads * spec.head_size, kv = spec.kv_heads * spec.head_size;
  RowList list(rows, layer);
  list.Norm(kInputNorm, "input_layernorm", hidden);
  list.Linear(kQ, kQBias, "self_attn.q_proj", q, hidden, spec.qkv_bias);
  list.Linear(kK, kKBias, "self_attn.k_proj", kv, hidden, spec.qkv_bias);
  list.Linear(kV, kVBias, "self_attn.v_proj", kv, hidden, spec.qkv_bias);
  if (spec.qk_norm) {
    list.Norm(kQNorm, "self_attn.q_norm", spec.head_size);
    list.Norm(kKNorm, "self_attn.k_norm", spec.head_size);
  }
  list.Linear(kO, kOBias, "self_attn.o_proj", hidden, q, spec.o_bias);
  list.Norm(kPostAttentionNorm, "post_attention_layernorm", hidden);
  list.Linear(kGate, kGateBias, "mlp.gate_proj", intermediate, hidden, spec.mlp_bias);
  list.Linear(kUp, kUpBias, "mlp.up_proj", intermediate, hidden, spec.mlp_bias);
  list.Linear(kDown, kDownBias, "mlp.down_proj", hidden, intermediate, spec.mlp_bias);
}

}  // namespace

WeightKind KindOf(WeightRole role) {
  switch (role) {
    case WeightRole::kEmbedding:
    case WeightRole::kQ:
    case WeightRole::kK:
    case WeightRole::kV:
    case WeightRole::kO:
    case WeightRole::kGate:
    case WeightRole::kUp:
    case WeightRole::kDown:
    case WeightRole::kHead:
      return WeightKind::kMatrix;
    case WeightRole::kInputNorm:
    case WeightRole::kQNorm:
    case WeightRole::kKNorm:
    case WeightRole::kPostAttentionNorm:
    case WeightRole::kFinalNorm:
      return WeightKind::kNorm;
    case WeightRole::kQBias:
    case WeightRole::kKBias:
    case WeightRole::kVBias:
    case WeightRole::kOBias:
    case WeightRole::kGateBias:
    case WeightRole::kUpBias:
    case WeightRole::kDownBias:
      return WeightKind::kBias;
  }
  return WeightKind::kMatrix;
}

std::vector<WeightRow> WeightRows(const ModelSpec& spec) {
  std::vector<WeightRow> rows;
  RowList outside(&rows, -1);
  outside.Matrix(WeightRole::kEmbedding, "model.embed_tokens", spec.vocab, spec.hidden);
  for (int64_t layer = 0; layer < spec.layers; ++layer) AddLayer(spec, layer, &rows);
  outside.Norm(WeightRole::kFinalNorm, "model.norm", spec.hidden);
  if (!spec.tied_embeddings) {
    outside.Matrix(WeightRole::kHead, "lm_head", spec.vocab, spec.hidden);
  }
  for (WeightRow& row : rows) {
    if (std::binary_search(spec.kept_in_16_bits.begin(), spec.kept_in_16_bits.end(), row.module)) {
      row.quantizable = false;
    }
  }
  return rows;
}

int64_t ParameterCount(const ModelSpec& spec) {
  int64_t count = 0;
  for (const WeightRow& row : WeightRows(spec)) count += row.Count();
  return count;
}

}  // namespace qlora::engine
