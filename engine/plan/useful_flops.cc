#include "engine/plan/useful_flops.h"

namespace qlora::engine {
namespace {

bool IsMatmulWeight(const WeightRow& row, const ModelSpec& spec) {
  if (row.rows == 1) return false;
  return row.role != WeightRole::kEmbedding || spec.tied_embeddings;
}

}  // namespace

double UsefulFlops(const ModelSpec& spec, bool trains_base, int64_t adapter_parameters,
                   int64_t tokens, double attention_pairs) {
  double weights = 0;
  for (const WeightRow& row : WeightRows(spec)) {
    if (IsMatmulWeight(row, spec)) weights += double(row.Count());
  }
  // Each visible pair of a query and a key costs 4 FLOP per channel forward (two products) and 8
  // backward.
  const double attention =
      12.0 * attention_pairs * double(spec.layers * spec.query_heads * spec.head_size);
  return double(tokens) * ((trains_base ? 6.0 : 4.0) * weights + 6.0 * double(adapter_parameters)) +
         attention;
}

}  // namespace qlora::engine
