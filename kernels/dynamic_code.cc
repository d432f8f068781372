#include "kernels/dynamic_code.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>

#include "quant/dynamic_map.h"

namespace qlora::kernels {
namespace {

// Floats in rising order, as integers.
float FromOrder(int64_t order) {
  return std::bit_cast<float>(uint32_t(order >= 0 ? order : 0x80000000 - order));
}

// The smallest float in [−2, 2] that gets a code above `code`, by bisection; a NaN, which nothing
// reaches, where there is none.
float SmallestAbove(const float* map, int code) {
  int64_t high = std::bit_cast<int32_t>(2.0f), low = -high;  // their difference is 2^31
  if (quant::EncodeDynamic(map, 2.0f) <= code) return std::numeric_limits<float>::quiet_NaN();
  if (quant::EncodeDynamic(map, -2.0f) > code) return -std::numeric_limits<float>::infinity();
  while (high - low > 1) {  // code(low) ≤ code < code(high)
    const int64_t middle = low + (high - low) / 2;
    (quant::EncodeDynamic(map, FromOrder(middle)) > code ? high : low) = middle;
  }
  return FromOrder(high);
}

std::unique_ptr<DynamicCode> Build(const std::array<float, quant::kDynamicMapSize>& map) {
  auto code = std::make_unique<DynamicCode>();
  std::copy(map.begin(), map.end(), code->map);
  for (int c = 0; c < 256; ++c) code->next[c] = SmallestAbove(map.data(), c);
  for (uint32_t bucket = 0; bucket < 65536; ++bucket) {
    const uint32_t smallest = bucket << 16 | (bucket >= 0x8000 ? 0xffffu : 0u);
    const float x = std::bit_cast<float>(smallest);
    code->base[bucket] = std::isnan(x) ? 0 : quant::EncodeDynamic(map.data(), x);
  }
  return code;
}

}  // namespace

const DynamicCode& SignedDynamicCode() {
  static const DynamicCode* const kCode = Build(quant::SignedDynamicMap()).release();
  return *kCode;
}
const DynamicCode& UnsignedDynamicCode() {
  static const DynamicCode* const kCode = Build(quant::UnsignedDynamicMap()).release();
  return *kCode;
}

}  // namespace qlora::kernels
