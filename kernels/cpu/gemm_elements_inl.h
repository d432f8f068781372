// What a product does to elements before and after its sums: widening, packing into panels,
// decoding and quantizing, rounding and dropout. Written once over a vector class `Vec` that the
// including file defines; gemm_kernels_inl.h goes on from here.
//
// Everything is in an unnamed namespace, and nothing here calls an inline function of another
// header: a copy of such a function compiled with wider instructions could be the one that the
// linker keeps for the whole program. NOLINTBEGIN(build/header_guard): included once by each file
// that defines a Vec.

#include <utility>

#include "kernels/cpu/gemm_kernels.h"

namespace qlora::kernels::cpu {
namespace {

using F = Vec::F;
using U = Vec::U;
constexpr int kLanes = Vec::kLanes;
typedef uint16_t H __attribute__((vector_size(kLanes * 2)));

#define QLORA_INLINE inline __attribute__((always_inline))

template <class V>
QLORA_INLINE V LoadAs(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
QLORA_INLINE void StoreAs(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}
QLORA_INLINE F Set1(float x) { return x - F{}; }

// As quant::Bf16FromF32, result in the upper half.
QLORA_INLINE U RoundBits(U b) {
  const U rounded = b + 0x7fffu + ((b >> 16) & 1u);
  const U quiet = b | 0x400000u;
  return ((b & 0x7fffffffu) > 0x7f800000u ? quiet : rounded) & 0xffff0000u;
}
QLORA_INLINE F Round(F x) { return (F)RoundBits((U)x); }
QLORA_INLINE uint32_t RoundBits(uint32_t b) {
  if ((b & 0x7fffffffu) > 0x7f800000u) return (b | 0x400000u) & 0xffff0000u;
  return (b + 0x7fffu + ((b >> 16) & 1u)) & 0xffff0000u;
}
QLORA_INLINE float Round(float x) {
  return __builtin_bit_cast(float, RoundBits(__builtin_bit_cast(uint32_t, x)));
}

QLORA_INLINE float F16ToF32(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 31u,
                 fraction = h & 0x3ffu;
  uint32_t bits;
  if (exponent == 31) {
    bits = 0x7f800000u | (fraction != 0 ? 0x400000u : 0u) | (fraction << 13);
  } else if (exponent == 0) {
    bits = __builtin_bit_cast(uint32_t, float(fraction) * 0x1p-24f);
  } else {
    bits = ((exponent + 112u) << 23) | (fraction << 13);
  }
  return __builtin_bit_cast(float, sign | bits);
}

// As quant::F16FromF32.
QLORA_INLINE uint16_t F32ToF16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // from 65520 on
  if (magnitude >= 0x38800000u) {                                 // from 2^-14 on
    return uint16_t(sign | ((magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13));
  }
  // Adding 1/2, whose unit in the last place is that of a subnormal result, rounds to it.
  const float sum = __builtin_bit_cast(float, magnitude) + 0.5f;
  return uint16_t(sign | (__builtin_bit_cast(uint32_t, sum) - 0x3f000000u));
}

// One element, and kLanes of them, as fp32.
template <DType kType>
QLORA_INLINE float Widen1(const void* p, int64_t i) {
  if constexpr (kType == DType::kF32) return static_cast<const float*>(p)[i];
  const uint16_t h = static_cast<const uint16_t*>(p)[i];
  if constexpr (kType == DType::kF16) return F16ToF32(h);
  return __builtin_bit_cast(float, uint32_t(h) << 16);
}
template <DType kType>
QLORA_INLINE F Widen(const void* p, int64_t i) {
  if constexpr (kType == DType::kF32) {
    return LoadAs<F>(static_cast<const float*>(p) + i);
  } else if constexpr (kType == DType::kF16) {
    return Vec::WidenF16(static_cast<const uint16_t*>(p) + i);
  } else {
    return (F)(__builtin_convertvector(LoadAs<H>(static_cast<const uint16_t*>(p) + i), U) << 16);
  }
}

// Calls f.template operator()<type, round>(): bf16 needs no rounding.
template <class Function>
QLORA_INLINE void ForType(DType dtype, bool round, Function&& f) {
  if (dtype == DType::kBf16) {
    f.template operator()<DType::kBf16, false>();
  } else if (dtype == DType::kF16) {
    round ? f.template operator()<DType::kF16, true>()
          : f.template operator()<DType::kF16, false>();
  } else {
    round ? f.template operator()<DType::kF32, true>()
          : f.template operator()<DType::kF32, false>();
  }
}

// ---- rows ----

void WidenRow(const void* in, DType dtype, int64_t count, bool round, float* out) {
  ForType(dtype, round, [&]<DType kType, bool kRound>() {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const F x = Widen<kType>(in, i);
      StoreAs(out + i, kRound ? Round(x) : x);
    }
    for (; i < count; ++i) {
      const float x = Widen1<kType>(in, i);
      out[i] = kRound ? Round(x) : x;
    }
  });
}

// ---- panels ----

// Words [w, w + kLanes) of one storage row; elements at or behind `depth` are zero.
template <int kPerWord, DType kType, bool kRound>
QLORA_INLINE U RowWords(const void* row, int64_t w, int64_t depth, float scale) {
  const int64_t k = w * kPerWord;
  if constexpr (kPerWord == 1) {
    F x;
    if (k + kLanes <= depth) {
      x = Widen<kType>(row, k);
    } else {
      float tail[kLanes] = {};
      for (int64_t i = k; i < depth; ++i) tail[i - k] = Widen1<kType>(row, i);
      x = LoadAs<F>(tail);
    }
    if (kRound) x = Round(x);
    return (U)(x * Set1(scale));
  } else {
    if (kType == DType::kBf16 && k + 2 * kLanes <= depth) {
      return LoadAs<U>(static_cast<const uint16_t*>(row) + k);
    }
    uint32_t words[kLanes] = {};
    for (int64_t i = k; i < depth && i < k + 2 * kLanes; ++i) {
      const uint32_t bits = RoundBits(__builtin_bit_cast(uint32_t, Widen1<kType>(row, i)));
      words[(i - k) / 2] |= (i - k) % 2 == 0 ? bits >> 16 : bits;
    }
    return LoadAs<U>(words);
  }
}

template <int... i>
QLORA_INLINE U InterleaveLow(U a, U b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i % 2 == 0 ? i / 2 : kLanes + i / 2)...);
}
template <int... i>
QLORA_INLINE U InterleaveHigh(U a, U b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (kLanes / 2 + (i % 2 == 0 ? i / 2 : kLanes + i / 2))...);
}
// A perfect shuffle of kLanes² words, log2(kLanes) times, is the transposition.
QLORA_INLINE void Transpose(U (&v)[kLanes]) {
  constexpr auto kLane = std::make_integer_sequence<int, kLanes>();
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
    U w[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      w[2 * i] = InterleaveLow(v[i], v[i + kLanes / 2], kLane);
      w[2 * i + 1] = InterleaveHigh(v[i], v[i + kLanes / 2], kLane);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) v[i] = w[i];
  }
}

QLORA_INLINE const uint8_t* StorageRow(const PackArgs& args, int64_t j) {
  return args.base + (args.index != nullptr ? int64_t{args.index[j]} : j) * args.pitch_bytes;
}

template <int kPerWord>
void PackRows(const PackArgs& args) {
  ForType(args.dtype, args.round, [&]<DType kType, bool kRound>() {
    const int64_t words = (args.depth + kPerWord - 1) / kPerWord;
    for (int lane0 = 0; lane0 < args.width; lane0 += kLanes) {
      const int lanes = args.width - lane0 < kLanes ? args.width - lane0 : kLanes;
      const uint8_t* rows[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        rows[i] = i < lanes && lane0 + i < args.valid ? StorageRow(args, lane0 + i) : nullptr;
      }
      for (int64_t w = 0; w < words; w += kLanes) {
        U v[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          v[i] = rows[i] == nullptr
                     ? U{}
                     : RowWords<kPerWord, kType, kRound>(rows[i], w, args.depth, args.scale);
        }
        Transpose(v);
        uint32_t* out = args.panel + w * args.width + lane0;
        const int64_t end = words - w < kLanes ? words - w : kLanes;
        for (int64_t i = 0; i < end; ++i, out += args.width) {
          if (lanes == kLanes) {
            StoreAs(out, v[i]);
          } else {
            Vec::StoreLanes(out, v[i], lanes);
          }
        }
      }
    }
  });
}

// kLanes neighbouring elements of a storage row, the ones at or behind `valid` zero.
template <DType kType, bool kRound>
QLORA_INLINE F RowLanes(const void* row, int lane0, int valid) {
  F x;
  if (lane0 + kLanes <= valid) {
    x = Widen<kType>(row, lane0);
  } else {
    float tail[kLanes] = {};
    for (int i = lane0; i < valid; ++i) tail[i - lane0] = Widen1<kType>(row, i);
    x = LoadAs<F>(tail);
  }
  return kRound ? Round(x) : x;
}

template <int kPerWord>
void PackColumns(const PackArgs& args) {
  ForType(args.dtype, args.round, [&]<DType kType, bool kRound>() {
    const F scale = Set1(args.scale);
    uint32_t* out = args.panel;
    for (int64_t k = 0; k < args.depth; k += kPerWord, out += args.width) {
      const uint8_t* row = StorageRow(args, k);
      const uint8_t* next = kPerWord == 2 && k + 1 < args.depth ? StorageRow(args, k + 1) : nullptr;
      for (int lane0 = 0; lane0 < args.width; lane0 += kLanes) {
        const F x = RowLanes<kType, kRound>(row, lane0, args.valid);
        U word;
        if constexpr (kPerWord == 1) {
          word = (U)(x * scale);
        } else {
          const F y = next == nullptr ? F{} : RowLanes<kType, kRound>(next, lane0, args.valid);
          word = (RoundBits((U)x) >> 16) | RoundBits((U)y);
        }
        if (args.width - lane0 >= kLanes) {
          StoreAs(out + lane0, word);
        } else {
          Vec::StoreLanes(out + lane0, word, args.width - lane0);
        }
      }
    }
  });
}

// ---- 4-bit weights ----

QLORA_INLINE float ScaleOfBlock(const DecodeSource& s, int64_t block) {
  if (s.absmax_f32 != nullptr) return s.absmax_f32[block];
  const float a = s.map[s.absmax_u8[block]] * s.nested_absmax[block / 256];
  return a + s.offset;
}

// values · scale, rounded where asked: what the 16 codes of one block stand for.
QLORA_INLINE void ScaleTable(const float* values, float scale, bool round, float* table) {
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += kLanes) {
    F v = LoadAs<F>(values + i) * Set1(scale);
    StoreAs(table + i, round ? Round(v) : v);
  }
}

void Decode(const DecodeSource& s, int64_t begin, int64_t count, bool round, float* out) {
  alignas(64) float table[16];
  const int shift = __builtin_ctz(s.spec.block_size);
  int64_t i = begin;
  const int64_t end = begin + count;
  while (i < end) {
    const int64_t block = i >> shift;
    const int64_t block_end = (block + 1) << shift;
    const int64_t stop = block_end < end ? block_end : end;
    ScaleTable(s.values, ScaleOfBlock(s, block), round, table);
    if (i % 2 != 0) {
      *out++ = table[s.codes[i / 2] & 15];
      ++i;
    }
    const typename Vec::Table lookup = Vec::MakeTable(table);
    for (; i + 16 <= stop; i += 16, out += 16) {
      F w[16 / kLanes];
      Vec::Decode16(lookup, s.codes + i / 2, w);
#pragma GCC unroll 4
      for (int j = 0; j < 16 / kLanes; ++j) StoreAs(out + j * kLanes, w[j]);
    }
    for (; i + 1 < stop; i += 2, out += 2) {
      out[0] = table[s.codes[i / 2] >> 4];
      out[1] = table[s.codes[i / 2] & 15];
    }
    if (i < stop) {
      *out++ = table[s.codes[i / 2] >> 4];
      ++i;
    }
  }
}

// Places of x among the rule's thresholds, by bisection; then the code of the place.
struct Encoder {
  typename Vec::Table thresholds, positive, negative;
  bool on_magnitude;

  explicit Encoder(const quant::EncodeRule& rule) : on_magnitude(rule.on_magnitude) {
    alignas(64) float table[3][16];
    for (int i = 0; i < 16; ++i) {
      table[0][i] = i < 15 ? rule.thresholds[i] : 0.0f;
      table[1][i] = __builtin_bit_cast(float, uint32_t{rule.positive[i]});
      table[2][i] = __builtin_bit_cast(float, uint32_t{rule.negative[i]});
    }
    thresholds = Vec::MakeTable(table[0]);
    positive = Vec::MakeTable(table[1]);
    negative = Vec::MakeTable(table[2]);
  }
  QLORA_INLINE U Encode(F x) const {
    const F m = on_magnitude ? (F)((U)x & 0x7fffffffu) : x;
    U rank = {};
#pragma GCC unroll 4
    for (uint32_t step = 8; step > 0; step /= 2) {
      const F threshold = Vec::Lookup(thresholds, rank + (step - 1));
      rank += m > threshold ? U{} + step : U{};
    }
    if (!on_magnitude) return (U)Vec::Lookup(positive, rank);
    return x < F{} ? (U)Vec::Lookup(negative, rank) : (U)Vec::Lookup(positive, rank);
  }
};

void Quantize(QuantizeArgs& args) {
  typedef uint64_t Pairs __attribute__((vector_size(kLanes * 4)));
  typedef uint8_t Bytes __attribute__((vector_size(kLanes / 2)));
  const Encoder encoder(*args.rule);
  alignas(64) float block[4096];
  alignas(64) uint8_t last[2048];
  const int64_t size = args.block_size;
  const uint8_t* in = static_cast<const uint8_t*>(args.in);
  const int64_t element = args.dtype == DType::kF32 ? 4 : 2;
  args.nonfinite = 0;
  for (int64_t first = 0, b = 0; first < args.count; first += size, ++b) {
    const int64_t count = args.count - first < size ? args.count - first : size;
    WidenRow(in + first * element, args.dtype, count, false, block);
    int64_t padded = count;
    for (; padded % kLanes != 0; ++padded) block[padded] = 0.0f;
    U largest = {}, bad = {};
    for (int64_t i = 0; i < padded; i += kLanes) {
      const U magnitude = LoadAs<U>(block + i) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;  // as integers: the same order
      bad += magnitude >= 0x7f800000u ? U{} + 1u : U{};
    }
    uint32_t top = 0;
    for (int i = 0; i < kLanes; ++i) {
      top = largest[i] > top ? largest[i] : top;
      args.nonfinite += bad[i];
    }
    const float absmax = top < 0x00800000u ? 0.0f : __builtin_bit_cast(float, top);
    args.absmax[b] = absmax;
    uint8_t* codes = args.codes + first / 2;
    if (absmax == 0.0f) {
      __builtin_memset(codes, 0, (count + 1) / 2);
      continue;
    }
    const F reciprocal = Set1(1.0f / absmax);
    uint8_t* out = padded == count ? codes : last;
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Pairs code = (Pairs)encoder.Encode(LoadAs<F>(block + i) * reciprocal);
      StoreAs(out + i / 2, __builtin_convertvector(code << 4 | code >> 32, Bytes));
    }
    if (out == last) __builtin_memcpy(codes, last, (count + 1) / 2);
  }
}

// ---- what becomes of sums ----

void Finish(const FinishArgs& args) {
  const F alpha = Set1(args.alpha);
  float* out32 = static_cast<float*>(args.out);
  uint16_t* out16 = static_cast<uint16_t*>(args.out);
  const bool is_f32 = args.dtype == DType::kF32;
  const bool is_f16 = args.dtype == DType::kF16;
  int64_t i = 0;
  for (; i + kLanes <= args.count; i += kLanes) {
    F x = LoadAs<F>(args.sum + i) * alpha;
    if (args.bias != nullptr) x += LoadAs<F>(args.bias + i);
    if (is_f32) {
      if (args.accumulate) x += LoadAs<F>(out32 + i);
      StoreAs(out32 + i, x);
    } else if (is_f16) {
      if (args.accumulate) x += Widen<DType::kF16>(out16, i);
      Vec::StoreF16(out16 + i, x);
    } else {
      if (args.accumulate) x += Widen<DType::kBf16>(out16, i);
      StoreAs(out16 + i, __builtin_convertvector(RoundBits((U)x) >> 16, H));
    }
  }
  for (; i < args.count; ++i) {
    float x = args.sum[i] * args.alpha;
    if (args.bias != nullptr) x += args.bias[i];
    if (is_f32) {
      if (args.accumulate) x += out32[i];
      out32[i] = x;
    } else if (is_f16) {
      if (args.accumulate) x += Widen1<DType::kF16>(out16, i);
      out16[i] = F32ToF16(x);
    } else {
      if (args.accumulate) x += Widen1<DType::kBf16>(out16, i);
      out16[i] = uint16_t(RoundBits(__builtin_bit_cast(uint32_t, x)) >> 16);
    }
  }
}

// ---- dropout: philox.h, kLanes groups of four elements at a time ----

void Drop(const DropoutArgs& d, uint64_t first, int64_t count, float kept_scale, float* x) {
  constexpr auto kLane = std::make_integer_sequence<int, kLanes>();
  U lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = uint32_t(i);
  const F kept = Set1(kept_scale);
  const uint64_t last_group = count == 0 ? 0 : (first + count - 1) / 4;
  for (uint64_t group = first / 4; count > 0 && group <= last_group; group += kLanes) {
    U c0 = lanes + uint32_t(group);
    U c1 = (uint32_t(group >> 32) - (U)(c0 < uint32_t(group))) ^ (d.key << 8);  // with the carry
    U c2 = U{} + uint32_t(d.counter[2]), c3 = U{} + uint32_t(d.counter[3]);
    uint32_t k0 = uint32_t(d.counter[0]), k1 = uint32_t(d.counter[1]);
    for (int round = 0; round < 10; ++round) {
      U high0, low0, high1, low1;
      Vec::Multiply(c0, 0xD2511F53u, &high0, &low0);
      Vec::Multiply(c2, 0xCD9E8D57u, &high1, &low1);
      c0 = high1 ^ c1 ^ k0;
      c1 = low1;
      c2 = high0 ^ c3 ^ k1;
      c3 = low0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    // Lane i of the four words is for the elements 4 (group + i) to 4 (group + i) + 3.
    const U even[2] = {InterleaveLow(c0, c2, kLane), InterleaveHigh(c0, c2, kLane)};
    const U odd[2] = {InterleaveLow(c1, c3, kLane), InterleaveHigh(c1, c3, kLane)};
    alignas(64) float scales[4 * kLanes];
    for (int half = 0; half < 2; ++half) {
      const U bits[2] = {InterleaveLow(even[half], odd[half], kLane),
                         InterleaveHigh(even[half], odd[half], kLane)};
      for (int i = 0; i < 2; ++i) {
        StoreAs(scales + (2 * half + i) * kLanes, bits[i] < d.threshold ? F{} : kept);
      }
    }
    const uint64_t begin = group * 4, end = begin + 4 * kLanes;
    const uint64_t from = begin > first ? begin : first;
    const uint64_t to = end < first + count ? end : first + count;
    for (uint64_t e = from; e < to; ++e) x[e - first] *= scales[e - begin];
  }
}

}  // namespace
}  // namespace qlora::kernels::cpu
// NOLINTEND
