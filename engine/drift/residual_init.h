// A and B that start from what quantization lost, instead of from nothing.
//
// With R = W − q(W) [out, in]: scaling · B·A is the best approximation of rank r to R in the
// Frobenius norm (LoftQ's step, Li et al. 2023, arXiv:2310.08659, taken once; the base keeps its
// bytes). By subspace iteration: Z ← Rᵀ·orth(R·Z), from counted random numbers, in fp64 with sums
// in index order, so that threads and machines do not change it. The singular values are split
// evenly between A and B. Rows of A beyond R's rank start as InitializeLoraA has them, with B = 0.

#ifndef QLORA_ENGINE_DRIFT_RESIDUAL_INIT_H_
#define QLORA_ENGINE_DRIFT_RESIDUAL_INIT_H_

#include <cstdint>

#include "absl/types/span.h"
#include "engine/drift/adapter_weights.h"
#include "engine/lora/targets.h"

namespace qlora::engine {

struct ResidualFactors {
  AdapterWeights::Factors factors;
  double captured = 0;  // ‖scaling · B·A‖² / ‖R‖²: the share of the error that they take back
};

// `residual`: f32 [module.out, module.in].
ResidualFactors FactorResidual(absl::Span<const float> residual, const AdaptedModule& module,
                               uint64_t seed, int threads);
// Bytes that it takes at most, its result aside.
int64_t FactorResidualBytes(const AdaptedModule& module);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_RESIDUAL_INIT_H_
