#include "engine/drift/weight_error.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/data/parallel.h"
#include "engine/model/element_convert.h"
#include "quant/reference_quantizer.h"

namespace qlora::engine {

double WeightError::SnrDb() const {
  if (noise == 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(signal / noise);
}

double WeightError::RelativeError() const { return signal > 0 ? std::sqrt(noise / signal) : 0; }

void WeightError::Add(const WeightError& other) {
  elements += other.elements;
  bytes += other.bytes;
  signal += other.signal;
  noise += other.noise;
  sum_absolute += other.sum_absolute;
  max_absolute = std::max(max_absolute, other.max_absolute);
  blocks += other.blocks;
  outlier_blocks += other.outlier_blocks;
}

int64_t QuantizedBytes(const quant::QuantSpec& spec, int64_t n) {
  const int64_t scales = spec.BlockCount(n) * (spec.double_quant ? 1 : 4);
  return spec.CodeBytes(n) + scales + spec.GroupCount(n) * 4 + (spec.double_quant ? 4 : 0);
}

void DequantizeRange(const quant::ConstQuantizedView& q, int64_t begin, int64_t count, float* out) {
  const std::array<float, 16>& values = quant::CodeValues(q.spec.type);
  const int64_t end = begin + count;
  for (int64_t i = begin; i < end;) {
    const int64_t block = i / q.spec.block_size;
    const int64_t stop = std::min(end, (block + 1) * q.spec.block_size);
    const float scale = quant::BlockScale(q, block);
    for (; i < stop; ++i) *out++ = values[quant::CodeAt(q.codes, i)] * scale;
  }
}

WeightError MeasureWeightError(kernels::DType type, const uint8_t* w, int64_t n,
                               const quant::ConstQuantizedView& q,
                               const WeightErrorOptions& options) {
  const int64_t block = q.spec.block_size;
  const int64_t group = block * quant::QuantSpec::kGroupSize;
  const int64_t groups = (n + group - 1) / group;
  std::vector<WeightError> parts(groups);
  std::vector<double> block_error(q.spec.BlockCount(n));  // mean e² of each
  ForEachInParallel(groups, options.threads, 1, [&](int64_t g) {
    const int64_t end = std::min((g + 1) * group, n);
    WeightError& part = parts[g];
    std::array<float, quant::QuantSpec::kMaxBlockSize> exact, coded;
    for (int64_t first = g * group; first < end; first += block) {
      const int64_t count = std::min(block, end - first);
      ConvertElements(type, w + first * kernels::SizeOf(type), count, kernels::DType::kF32,
                      exact.data());
      DequantizeRange(q, first, count, coded.data());
      double noise = 0;
      for (int64_t i = 0; i < count; ++i) {
        const double e = std::fabs(double(coded[i]) - double(exact[i]));
        noise += e * e;
        part.signal += double(exact[i]) * double(exact[i]);
        part.sum_absolute += e;
        part.max_absolute = std::max(part.max_absolute, e);
      }
      part.noise += noise;
      block_error[first / block] = noise / double(count);
    }
  });
  WeightError error;
  for (const WeightError& part : parts) error.Add(part);
  error.elements = n;
  error.bytes = QuantizedBytes(q.spec, n);
  error.blocks = int64_t(block_error.size());
  if (block_error.empty()) return error;
  std::vector<double> sorted = block_error;
  const auto middle = sorted.begin() + int64_t(sorted.size()) / 2;
  std::nth_element(sorted.begin(), middle, sorted.end());
  // The factor holds for root mean squares, these are mean squares.
  const double limit = *middle * options.outlier_factor * options.outlier_factor;
  error.outlier_blocks =
      std::count_if(block_error.begin(), block_error.end(), [&](double e) { return e > limit; });
  return error;
}

}  // namespace qlora::engine
