#include "kernels/ops/adamw.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"

namespace qlora::kernels::cpu {
namespace {

// The table is bytes, aligned to nothing.
ParameterSegment SegmentNumber(const ConstTensor& segments, int64_t i) {
  ParameterSegment segment;
  std::memcpy(&segment, segments.Row<uint8_t>(i), sizeof(segment));
  return segment;
}

// The segment of a block of the flat space: the last one that begins at or before it.
ParameterSegment SegmentOf(const ConstTensor& segments, int64_t block) {
  int64_t low = 0, high = segments.rows;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (SegmentNumber(segments, middle).first_block <= block ? low : high) = middle;
  }
  return SegmentNumber(segments, low);
}

// Where element i of a range lies in its windows.
uint8_t* ElementOf(const Tensor& windows, int64_t i) {
  return static_cast<uint8_t*>(windows.data) +
         (i / windows.cols * windows.pitch + i % windows.cols) * SizeOf(windows.dtype);
}

}  // namespace

void Run(const AdamW& op, const Context& context) {
  if (op.skip.Scalar<int32_t>() != 0) return;
  const SimdKernels& simd = SimdFor(context.isa);
  const int64_t n = op.gradient.Count();
  const int64_t blocks = (n + kParameterBlock - 1) / kParameterBlock;
  const bool codes = op.m.dtype == DType::kU8;
  const DynamicCode* m_code = codes ? &SignedDynamicCode() : nullptr;
  const DynamicCode* v_code = codes ? &UnsignedDynamicCode() : nullptr;
  ForTiles(context.pool, blocks, kTileElements / kParameterBlock, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const ParameterSegment segment = SegmentOf(op.segments, op.first_block + b);
      const float* scalars = op.scalars.Row<float>(segment.adapter);
      // The few scalars of a block in fp64, so that they cost no accuracy.
      const double rate = double(scalars[UpdateScalars::kLearningRate]) * segment.rate_factor;
      const int64_t at = b * kParameterBlock;
      simd.adamw({
          .n = std::min(kParameterBlock, n - at),
          .gradient = op.gradient.Row<float>(0) + at,
          .parameter = reinterpret_cast<float*>(ElementOf(op.parameter, at)),
          .m = ElementOf(op.m, at),
          .v = ElementOf(op.v, at),
          .m_absmax = codes ? reinterpret_cast<float*>(ElementOf(op.m_absmax, b)) : nullptr,
          .v_absmax = codes ? reinterpret_cast<float*>(ElementOf(op.v_absmax, b)) : nullptr,
          .m_code = m_code,
          .v_code = v_code,
          .compute = op.compute ? op.compute.Row<uint16_t>(0) + at : nullptr,
          .gradient_scale = *op.gradient_scale.Row<float>(segment.adapter),
          .keep = float(1.0 - rate * segment.weight_decay),
          .step = float(rate / scalars[UpdateScalars::kBiasCorrection1]),
          .root_correction2 = float(std::sqrt(double(scalars[UpdateScalars::kBiasCorrection2]))),
          .beta1 = float(op.beta1),
          .rest1 = float(1.0 - op.beta1),
          .beta2 = float(op.beta2),
          .rest2 = float(1.0 - op.beta2),
          .epsilon = op.epsilon,
      });
    }
  });
}
int64_t WorkspaceBytes(const AdamW&, Isa) { return 0; }

}  // namespace qlora::kernels::cpu
