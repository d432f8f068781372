#include "quant/reference_quantizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "quant/codebook.h"
#include "quant/dynamic_map.h"
#include "quant/spec.h"

namespace qlora::quant {
namespace {

absl::Status CheckArguments(const float* w, int64_t n, const QuantSpec& spec,
                            const QuantizedView& out) {
  if (absl::Status status = spec.Validate(); !status.ok()) return status;
  if (n < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("quantize: found ", n, " elements; allowed is 0 or more"));
  }
  const bool scales = spec.double_quant ? out.absmax_u8 != nullptr && out.nested_absmax != nullptr
                                        : out.absmax_f32 != nullptr;
  const bool offset = !spec.double_quant || out.nested_offset != nullptr;
  if ((n > 0 && (w == nullptr || out.codes == nullptr || !scales)) || !offset) {
    return absl::InvalidArgumentError(
        absl::StrCat("quantize: a view is missing; needed are the weights, codes and ",
                     spec.double_quant ? "absmax_u8, nested_absmax, nested_offset" : "absmax_f32"));
  }
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(w[i])) {
      return absl::InvalidArgumentError(absl::StrCat("quantize: element ", i, " of ", n, " is ",
                                                     w[i],
                                                     "; only finite weights can be quantized"));
    }
  }
  return absl::OkStatus();
}

float FlushSubnormal(float magnitude) {
  return magnitude < std::numeric_limits<float>::min() ? 0.0f : magnitude;
}

struct Tensor {
  const float* w;
  int64_t n;
  int64_t block_size;

  float Absmax(int64_t block) const {
    const int64_t end = std::min(n, (block + 1) * block_size);
    float absmax = 0.0f;
    for (int64_t i = block * block_size; i < end; ++i) absmax = std::max(absmax, std::fabs(w[i]));
    return FlushSubnormal(absmax);
  }
};

void EncodeBlock(const Tensor& tensor, int64_t block, QuantType type, float absmax,
                 uint8_t* codes) {
  const float reciprocal = 1.0f / absmax;
  // Beyond the tensor's end stands a zero, encoded like the elements of the last block.
  const auto code = [&](int64_t i) -> uint8_t {
    if (absmax == 0.0f) return 0;
    return Encode(type, i < tensor.n ? tensor.w[i] * reciprocal : 0.0f);
  };
  const int64_t end = std::min(tensor.n, (block + 1) * tensor.block_size);
  for (int64_t i = block * tensor.block_size; i < end; i += 2) {
    codes[i / 2] = static_cast<uint8_t>(code(i) << 4 | code(i + 1));
  }
}

float MeanAbsmax(const Tensor& tensor, int64_t blocks) {
  if (blocks == 0) return 0.0f;
  double total = 0.0;
  for (int64_t first = 0; first < blocks; first += QuantSpec::kMeanChunkBlocks) {
    const int64_t end = std::min<int64_t>(blocks, first + QuantSpec::kMeanChunkBlocks);
    double chunk = 0.0;
    for (int64_t block = first; block < end; ++block) chunk += tensor.Absmax(block);
    total += chunk;
  }
  return static_cast<float>(total / static_cast<double>(blocks));
}

void EncodeScales(const Tensor& tensor, int64_t blocks, const QuantizedView& out) {
  const float offset = MeanAbsmax(tensor, blocks);
  *out.nested_offset = offset;
  const float* map = out.nested_map != nullptr ? out.nested_map : SignedDynamicMap().data();
  std::array<float, QuantSpec::kGroupSize> d;
  for (int64_t first = 0; first < blocks; first += QuantSpec::kGroupSize) {
    const int64_t count = std::min<int64_t>(QuantSpec::kGroupSize, blocks - first);
    float nested = 0.0f;
    for (int64_t k = 0; k < count; ++k) {
      d[k] = tensor.Absmax(first + k) - offset;
      nested = std::max(nested, std::fabs(d[k]));
    }
    nested = FlushSubnormal(nested);
    out.nested_absmax[first / QuantSpec::kGroupSize] = nested;
    const float reciprocal = 1.0f / nested;
    for (int64_t k = 0; k < count; ++k) {
      out.absmax_u8[first + k] = nested == 0.0f ? 0 : EncodeDynamic(map, d[k] * reciprocal);
    }
  }
}

}  // namespace

absl::Status QuantizeReference(const float* w, int64_t n, const QuantSpec& spec,
                               const QuantizedView& out) {
  if (absl::Status status = CheckArguments(w, n, spec, out); !status.ok()) return status;
  const Tensor tensor{.w = w, .n = n, .block_size = spec.block_size};
  const int64_t blocks = spec.BlockCount(n);
  for (int64_t block = 0; block < blocks; ++block) {
    const float absmax = tensor.Absmax(block);
    if (!spec.double_quant) out.absmax_f32[block] = absmax;
    EncodeBlock(tensor, block, spec.type, absmax, out.codes);
  }
  if (spec.double_quant) EncodeScales(tensor, blocks, out);
  return absl::OkStatus();
}

float BlockScale(const ConstQuantizedView& view, int64_t block) {
  if (!view.spec.double_quant) return view.absmax_f32[block];
  const float* map = view.nested_map != nullptr ? view.nested_map : SignedDynamicMap().data();
  // Two statements, two roundings.
  const float scaled =
      map[view.absmax_u8[block]] * view.nested_absmax[block / QuantSpec::kGroupSize];
  return scaled + *view.nested_offset;
}

void DequantizeReference(const ConstQuantizedView& view, int64_t n, float* out) {
  const std::array<float, 16>& values = CodeValues(view.spec.type);
  const int64_t block_size = view.spec.block_size;
  for (int64_t block = 0; block * block_size < n; ++block) {
    const float scale = BlockScale(view, block);
    const int64_t end = std::min(n, (block + 1) * block_size);
    for (int64_t i = block * block_size; i < end; ++i) {
      out[i] = values[CodeAt(view.codes, i)] * scale;
    }
  }
}

}  // namespace qlora::quant
