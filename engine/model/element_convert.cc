#include "engine/model/element_convert.h"

#include <cmath>
#include <cstring>

#include "quant/float_formats.h"

namespace qlora::engine {
namespace {

using kernels::DType;

float LoadElement(DType type, const uint8_t* from) {
  if (type == DType::kF32) {
    float value;
    std::memcpy(&value, from, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return type == DType::kBf16 ? quant::F32FromBf16(bits) : quant::F32FromF16(bits);
}

float StoreElement(DType type, float value, uint8_t* to) {
  if (type == DType::kF32) {
    std::memcpy(to, &value, 4);
    return value;
  }
  const uint16_t bits = type == DType::kBf16 ? quant::Bf16FromF32(value) : quant::F16FromF32(value);
  std::memcpy(to, &bits, 2);
  return type == DType::kBf16 ? quant::F32FromBf16(bits) : quant::F32FromF16(bits);
}

// A float is finite unless all bits of its exponent are set.
template <class Bits>
int64_t FirstWithExponent(Bits exponent, absl::Span<const uint8_t> bytes) {
  for (size_t i = 0; i < bytes.size() / sizeof(Bits); ++i) {
    Bits bits;
    std::memcpy(&bits, bytes.data() + i * sizeof(Bits), sizeof(Bits));
    if ((bits & exponent) == exponent) return int64_t(i);
  }
  return -1;
}

}  // namespace

std::optional<DType> FloatType(Dtype stored) {
  switch (stored) {
    case Dtype::kBF16:
      return DType::kBf16;
    case Dtype::kF16:
      return DType::kF16;
    case Dtype::kF32:
      return DType::kF32;
    default:
      return std::nullopt;
  }
}

int64_t ConvertElements(DType from_type, const uint8_t* from, int64_t count, DType to_type,
                        void* to) {
  const int64_t from_size = kernels::SizeOf(from_type), to_size = kernels::SizeOf(to_type);
  uint8_t* out = static_cast<uint8_t*>(to);
  int64_t bad = -1;
  for (int64_t i = 0; i < count; ++i) {
    const float stored =
        StoreElement(to_type, LoadElement(from_type, from + i * from_size), out + i * to_size);
    if (bad < 0 && !std::isfinite(stored)) bad = i;
  }
  return bad;
}

int64_t FirstNonFinite(DType type, absl::Span<const uint8_t> bytes) {
  switch (type) {
    case DType::kF64:
      return FirstWithExponent<uint64_t>(0x7ff0000000000000, bytes);
    case DType::kF32:
      return FirstWithExponent<uint32_t>(0x7f800000, bytes);
    case DType::kBf16:
      return FirstWithExponent<uint16_t>(0x7f80, bytes);
    case DType::kF16:
      return FirstWithExponent<uint16_t>(0x7c00, bytes);
    default:
      return -1;
  }
}

}  // namespace qlora::engine
