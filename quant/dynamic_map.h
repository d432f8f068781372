// The 8-bit dynamic code of bitsandbytes: 256 fp32 values in ascending order, dense near zero.
//
// Signed: second-level codes of double quantization (the absmax of blocks), and first moments of
// 8-bit AdamW. Unsigned: second moments of 8-bit AdamW. Both are embedded as bit patterns: they
// derive from torch.linspace, whose fused multiply-adds leave 24 points of the signed map one ulp
// off what plain fp32 arithmetic gives.
#ifndef QLORA_QUANT_DYNAMIC_MAP_H_
#define QLORA_QUANT_DYNAMIC_MAP_H_

#include <array>
#include <cstdint>

namespace qlora::quant {

inline constexpr int kDynamicMapSize = 256;

// create_dynamic_map(signed=True): -0.99296874 at 0, 0 at 127, 1 at 255; map[126-k] = -map[128+k]
// for k in 0..126. Lives for ever.
const std::array<float, kDynamicMapSize>& SignedDynamicMap();

// create_dynamic_map(signed=False): 0 at 0, 3.25e-7 at 1, 1 at 255. Lives for ever.
const std::array<float, kDynamicMapSize>& UnsignedDynamicMap();

// The code of x in `map` (256 ascending fp32 values), by the binary search of bitsandbytes' CUDA
// kernels: the nearest entry; when x is exactly at the fp32 midpoint of two entries, the one at
// which the search ended. x outside the map takes the end entry; a NaN gets code 0.
uint8_t EncodeDynamic(const float* map, float x);

}  // namespace qlora::quant

#endif  // QLORA_QUANT_DYNAMIC_MAP_H_
