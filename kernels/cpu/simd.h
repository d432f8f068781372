// The vectorised kernels of the elementwise ops, of attention and of the softmax: one table per
// instruction set.
//
// A kernel works on a range that its caller cut by shape alone; ops' own files cut, these compute.
// All tables but attention's give the same bytes: see vec.h.

#ifndef QLORA_KERNELS_CPU_SIMD_H_
#define QLORA_KERNELS_CPU_SIMD_H_

#include <cstdint>

#include "kernels/cpu/isa.h"
#include "kernels/dynamic_code.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/gated_activation.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/rope.h"

namespace qlora::kernels::cpu {

// One kv head of one document, as the attention kernels see it: pointers at the document's first
// query and key rows and at the head's first column, pitches in elements. Queries and the `group`
// query heads of this kv head are numbered together: *pair* p is query p / group, head p mod group.
struct AttentionView {
  bool is_bf16 = false;
  const void *q = nullptr, *k = nullptr, *v = nullptr, *dout = nullptr;
  int64_t q_pitch = 0, k_pitch = 0, v_pitch = 0, dout_pitch = 0;
  void *o = nullptr, *dq = nullptr, *dk = nullptr, *dv = nullptr;
  int64_t o_pitch = 0, dq_pitch = 0, dk_pitch = 0, dv_pitch = 0;
  float* lse = nullptr;    // written by forward, read by backward
  float* delta = nullptr;  // Σ do·o
  int64_t lse_pitch = 0, delta_pitch = 0;
  int64_t queries = 0, keys = 0, group = 0, head_size = 0;
  float scale = 0, softcap = 0;
  int64_t window = 0;
};
// Pairs of a query tile, keys of a key tile, and both sides of every score block.
inline constexpr int64_t kAttentionBlock = 64;

struct LogitStats {
  float max;
  double sum;  // Σ exp(z − max)
};

struct AdamWBlock {
  int64_t n;  // ≤ kParameterBlock
  const float* gradient;
  float* parameter;
  void *m, *v;                         // f32, or codes of the maps below
  float *m_absmax, *v_absmax;          // of this block; only with codes
  const DynamicCode *m_code, *v_code;  // null: f32 states
  uint16_t* compute;                   // bf16 or null
  float gradient_scale, keep, step,
      root_correction2;                       // keep = 1 − lr · decay, step = lr / correction1
  float beta1, rest1, beta2, rest2, epsilon;  // rest = 1 − beta
};

struct SimdKernels {
  // Rows [begin, end).
  void (*embedding_forward)(const EmbeddingForward&, int64_t begin, int64_t end);
  void (*rms_norm_forward)(const RmsNormForward&, int64_t begin, int64_t end);
  void (*rms_norm_backward)(const RmsNormBackward&, int64_t begin, int64_t end);
  void (*rope)(const Rope&, int64_t begin, int64_t end);
  void (*gated_forward)(const GatedActivationForward&, int64_t begin, int64_t end);
  void (*gated_backward)(const GatedActivationBackward&, int64_t begin, int64_t end);
  // Columns [begin, end), all of the first `rows` rows in order.
  void (*embedding_backward)(const EmbeddingBackward&, int64_t rows, int64_t begin, int64_t end);
  void (*rms_norm_backward_weight)(const RmsNormBackward&, int64_t rows, int64_t begin,
                                   int64_t end);

  // z = softcap · tanh(z / softcap) in place where softcap > 0, then the row's statistics.
  LogitStats (*logit_stats)(float* z, int64_t n, float softcap);
  // (softmax − onehot) · (1 − (z/softcap)²) over z, in place: as bf16 from the row's first byte on,
  // or as fp32.
  void (*logit_gradient)(float* z, int64_t n, float softcap, LogitStats stats, int64_t target,
                         bool bf16);

  void (*adamw)(const AdamWBlock&);
  // Σ x² over the finite elements in the order that reduce.h gives for one chunk; counts the
  // others.
  double (*sum_of_squares)(const void* x, bool bf16, int64_t n, int64_t* nonfinite);

  // Pairs [begin, end), of one query tile: `begin` a multiple of kAttentionBlock, at most that
  // many; any for `delta`, which reads o. `scratch` is a worker's own.
  void (*attention_delta)(const AttentionView&, int64_t begin, int64_t end);
  void (*attention_forward)(const AttentionView&, int64_t begin, int64_t end, uint8_t* scratch);
  void (*attention_backward_queries)(const AttentionView&, int64_t begin, int64_t end,
                                     uint8_t* scratch);
  // Keys [begin, end), cut likewise.
  void (*attention_backward_keys)(const AttentionView&, int64_t begin, int64_t end,
                                  uint8_t* scratch);
};

const SimdKernels& SimdFor(Isa isa);

// One table per suffix file.
extern const SimdKernels kSimdPortable;
extern const SimdKernels kSimdAvx2;
extern const SimdKernels kSimdAvx512;

}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_SIMD_H_
