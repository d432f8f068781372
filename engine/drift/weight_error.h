// What quantization does to the numbers of a weight.
//
// With w the stored weight and q its 4-bit value in fp32 (kernels that compute in bf16 round q once
// more), e = q − w:
//   SNR             10 · log10(Σw² / Σe²) dB
//   relative error  √(Σe² / Σw²)
//   outlier block   one whose √(mean e²) is over `outlier_factor` times the median block's
// Sums are taken in fp64, within double-quantization groups (256 blocks) in index order, then over
// the groups in order: threads do not change them. The median is the upper one of an even number.

#ifndef QLORA_ENGINE_DRIFT_WEIGHT_ERROR_H_
#define QLORA_ENGINE_DRIFT_WEIGHT_ERROR_H_

#include <cstdint>

#include "kernels/tensor.h"
#include "quant/spec.h"

namespace qlora::engine {

struct WeightError {
  int64_t elements = 0;
  int64_t bytes = 0;  // as stored in 4 bits
  double signal = 0;  // Σw²
  double noise = 0;   // Σe²
  double sum_absolute = 0;
  double max_absolute = 0;
  int64_t blocks = 0, outlier_blocks = 0;

  double SnrDb() const;  // infinite without noise
  double RelativeError() const;
  double MeanAbsolute() const { return elements > 0 ? sum_absolute / double(elements) : 0; }
  double BitsPerWeight() const { return elements > 0 ? 8.0 * double(bytes) / double(elements) : 0; }
  // Of several weights together.
  void Add(const WeightError& other);
};

struct WeightErrorOptions {
  double outlier_factor = 3;
  int threads = 1;  // 0: one per core
};

// `w`: n finite elements of `type` (bf16, f16 or f32) at any address; `q`: what they were quantized
// to. Takes 16 bytes for each block.
WeightError MeasureWeightError(kernels::DType type, const uint8_t* w, int64_t n,
                               const quant::ConstQuantizedView& q,
                               const WeightErrorOptions& options);

// Elements [begin, begin + count) of `q` in fp32, as quant::DequantizeReference has them.
void DequantizeRange(const quant::ConstQuantizedView& q, int64_t begin, int64_t count, float* out);

// Bytes of n elements as stored: codes and scales.
int64_t QuantizedBytes(const quant::QuantSpec& spec, int64_t n);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_WEIGHT_ERROR_H_
