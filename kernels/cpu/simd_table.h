// Defines this translation unit's table of kernels; included once, by simd.cc, simd_avx2.cc and
// simd_avx512.cc.

#ifndef QLORA_KERNELS_CPU_SIMD_TABLE_H_
#define QLORA_KERNELS_CPU_SIMD_TABLE_H_

#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_attention.h"
#include "kernels/cpu/simd_elementwise.h"
#include "kernels/cpu/simd_norm.h"
#include "kernels/cpu/simd_update.h"

namespace qlora::kernels::cpu {
namespace {

constexpr SimdKernels MakeSimdTable() {
  return {
      .embedding_forward = EmbeddingForwardRows,
      .rms_norm_forward = RmsNormForwardRows,
      .rms_norm_backward = RmsNormBackwardRows,
      .rope = RopeRows,
      .gated_forward = GatedForwardRows,
      .gated_backward = GatedBackwardRows,
      .embedding_backward = EmbeddingBackwardColumns,
      .rms_norm_backward_weight = RmsNormBackwardWeightColumns,
      .logit_stats = LogitStatsOfRow,
      .logit_gradient = LogitGradientOfRow,
      .adamw = AdamWOneBlock,
      .sum_of_squares = SumOfSquares,
      .attention_delta = AttentionDelta,
      .attention_forward = AttentionForwardTile,
      .attention_backward_queries = AttentionBackwardQueries,
      .attention_backward_keys = AttentionBackwardKeys,
  };
}

}  // namespace
}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_SIMD_TABLE_H_
