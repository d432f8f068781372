// What a model is, as data: flags and sizes that the forward pass reads, and the list of its
// tensors. Families differ in these values only; nothing behind this file asks for a family's name.
//
// The forward pass that the fields describe (T tokens, all linears y = x·Wᵀ + b):
//   x = embedding[token] · embedding_scale
//   per layer:
//     h = RMSNorm(x) · (norm_offset + input_norm)
//     q, k, v = linear(h);  with qk_norm q and k of each head pass RMSNorm over head_size before
//     RoPE x += linear_o(attention(RoPE(q), RoPE(k), v; attention_scale, attention_softcap,
//     window[layer])) h = RMSNorm(x) · (norm_offset + post_attention_norm) x +=
//     linear_down(activation(linear_gate(h)) · linear_up(h))
//   logits = head(RMSNorm(x) · (norm_offset + final_norm)), then logit_softcap
#ifndef QLORA_ENGINE_MODEL_MODEL_SPEC_H_
#define QLORA_ENGINE_MODEL_MODEL_SPEC_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops/gated_activation.h"
#include "kernels/tensor.h"

namespace qlora::engine {

// Rotary position embedding: the first rotary_dims of each head turn, in halves. See rope_table.h.
struct RopeSpec {
  enum class Scaling : uint8_t { kNone, kLinear, kLlama3, kYarn };

  int64_t rotary_dims = 0;  // even, ≤ head_size
  double theta = 10000.0;
  Scaling scaling = Scaling::kNone;
  // The rest only where scaling says so.
  double factor = 1.0;                       // kLinear, kLlama3, kYarn
  double low_freq_factor = 1.0;              // kLlama3
  double high_freq_factor = 4.0;             // kLlama3
  int64_t original_max_positions = 0;        // kLlama3, kYarn
  double beta_fast = 32.0, beta_slow = 1.0;  // kYarn
  bool truncate = true;                      // kYarn: correction range rounded to whole dimensions
  double attention_factor = 1.0;  // multiplies cos and sin; resolved from mscale where given
};

struct ModelSpec {
  std::string family;  // for messages only: "llama", "mistral", "qwen2", "qwen3"
  int64_t hidden = 0;
  int64_t layers = 0;
  int64_t query_heads = 0;
  int64_t kv_heads = 0;   // divides query_heads
  int64_t head_size = 0;  // even; query_heads · head_size need not be hidden
  int64_t intermediate = 0;
  int64_t vocab = 0;  // rows of embedding and head; may exceed the tokenizer's
  int64_t max_positions = 0;

  float rms_epsilon = 0.0f;
  float norm_offset = 0.0f;  // 1 where norm weights are stored as the difference from 1
  float embedding_scale = 1.0f;
  kernels::Activation activation = kernels::Activation::kSilu;
  bool tied_embeddings = false;  // the head is the embedding; then there is no kHead row
  bool qk_norm = false;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  float attention_scale = 0.0f;
  float attention_softcap = 0.0f;  // 0: none
  float logit_softcap = 0.0f;      // 0: none
  std::vector<int64_t> window;     // per layer, the token itself counted; 0: none
  RopeSpec rope;

  kernels::DType stored_dtype = kernels::DType::kF32;  // f32, bf16 or f16, as the config declares
  bool prequantized = false;  // linears may lie in the checkpoint in bitsandbytes' 4 bits
  // Linears ("model.layers.0.mlp.down_proj") that are not quantizable: the job's keep_in_16_bits,
  // resolved by KeepIn16Bits. Sorted.
  std::vector<std::string> kept_in_16_bits;
  float initializer_range = 0.02f;  // standard deviation of a random initialisation
  std::vector<int32_t> eos_ids;     // tokens that end generation; sorted, no duplicates
  int32_t bos_id = -1;              // -1: none
};

enum class WeightRole : uint8_t {
  kEmbedding,
  kInputNorm,
  kQ,
  kQBias,
  kK,
  kKBias,
  kV,
  kVBias,
  kQNorm,
  kKNorm,
  kO,
  kOBias,
  kPostAttentionNorm,
  kGate,
  kGateBias,
  kUp,
  kUpBias,
  kDown,
  kDownBias,
  kFinalNorm,
  kHead,
};

enum class WeightKind : uint8_t { kMatrix, kNorm, kBias };
WeightKind KindOf(WeightRole role);

// One tensor of the checkpoint. A vector is a matrix of one row.
struct WeightRow {
  std::string name;    // "model.layers.0.self_attn.q_proj.weight"
  std::string module;  // "model.layers.0.self_attn.q_proj": what PEFT calls the module
  WeightRole role = WeightRole::kEmbedding;
  int64_t layer = -1;        // -1: outside the layers
  int64_t rows = 0;          // linears: out features
  int64_t cols = 0;          // linears: in features
  bool quantizable = false;  // weight of a linear inside a layer: 4 bits in mode QLORA, unless kept
  bool lora_target = false;  // may carry an adapter

  int64_t Count() const { return rows * cols; }
};

// All tensors, in the one order that everything else follows: the embedding; then per layer, by
// ascending layer, in the order of WeightRole (each bias behind its weight); the final norm; the
// head, absent with tied_embeddings. (Where a checkpoint of a tied model holds a head that differs
// from the embedding, the loader clears tied_embeddings first.)
std::vector<WeightRow> WeightRows(const ModelSpec& spec);

// Sum of Count() over WeightRows(spec).
int64_t ParameterCount(const ModelSpec& spec);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MODEL_MODEL_SPEC_H_
