// The 8-bit dynamic code as two tables, so that encoding is two look-ups and one comparison.
//
// The upper 16 bits of a float (sign, exponent, 7 bits of mantissa) name a bucket; no bucket holds
// more than one border between codes, since the map's steps are never finer than 2^-7 of its
// values.

#ifndef QLORA_KERNELS_DYNAMIC_CODE_H_
#define QLORA_KERNELS_DYNAMIC_CODE_H_

#include <cstdint>

namespace qlora::kernels {

struct DynamicCode {
  float map[256];
  float next[256];      // the smallest float whose code is above c; NaN for the last code
  uint8_t base[65536];  // the code of the smallest float in each bucket
};

// Equal to quant::EncodeDynamic over the signed and the unsigned map for every float. Live for
// ever; built at the first call.
const DynamicCode& SignedDynamicCode();
const DynamicCode& UnsignedDynamicCode();

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_DYNAMIC_CODE_H_
