// Sixteen-lane vectors on whatever registers the translation unit is compiled for.
//
// For files that are compiled once per instruction set only (simd*.cc and the *_simd.h that they
// include). Everything lies in an unnamed namespace, so that each of those files keeps its own
// copy: with external linkage the linker would keep one of them, and baseline code could end up
// running AVX-512. For the same reason such files call no inline function of another header.
//
// A `Vec` is always 16 floats: one AVX-512 register, two of AVX, four of SSE. Sums therefore have
// the same 16 lanes and the same order on every instruction set, and code that uses Mul and Add but
// not Fma gives the same bytes on all.

#ifndef QLORA_KERNELS_CPU_VEC_H_
#define QLORA_KERNELS_CPU_VEC_H_

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define QLORA_INLINE inline __attribute__((always_inline))
#define QLORA_LAMBDA_INLINE __attribute__((always_inline))

namespace qlora::kernels::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kNativeLanes = 16;
#elif defined(__AVX2__)
constexpr int kNativeLanes = 8;
#else
constexpr int kNativeLanes = 4;
#endif
constexpr int kLanes = 16;
constexpr int kParts = kLanes / kNativeLanes;

using NativeF = float __attribute__((vector_size(4 * kNativeLanes)));
using NativeI = int32_t __attribute__((vector_size(4 * kNativeLanes)));
using NativeU = uint32_t __attribute__((vector_size(4 * kNativeLanes)));
using NativeHalf = uint16_t __attribute__((vector_size(2 * kNativeLanes)));

#if defined(__AVX512F__)
// The forms without a mask start from an undefined register, of which GCC 12 warns (its bug
// 105593); with all lanes chosen the compiler makes the same instruction of both.
constexpr __mmask16 kAllLanes = 0xffff;
#endif

struct Vec {
  NativeF p[kParts];
};
// Lanes of a comparison are 0 or −1.
struct IVec {
  NativeI p[kParts];
};

// 16-bit numbers in storage.
struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// One call for each register. Written out, because GCC keeps arrays that a loop indexes in memory.
template <class Result, class F>
QLORA_INLINE Result MapTo(F f) {
  if constexpr (kParts == 1) {
    return {{f(0)}};
  } else if constexpr (kParts == 2) {
    return {{f(0), f(1)}};
  } else {
    return {{f(0), f(1), f(2), f(3)}};
  }
}
template <class F>
QLORA_INLINE Vec MapParts(F f) {
  return MapTo<Vec>(f);
}
template <class F>
QLORA_INLINE IVec MapPartsI(F f) {
  return MapTo<IVec>(f);
}

QLORA_INLINE Vec Set(float x) {
  return MapParts([&](int) { return x - NativeF{}; });  // x − 0 is x, −0 and NaN too
}
QLORA_INLINE IVec SetI(int32_t x) {
  return MapPartsI([&](int) { return x - NativeI{}; });
}
QLORA_INLINE Vec operator+(Vec a, Vec b) {
  return MapParts([&](int i) { return a.p[i] + b.p[i]; });
}
QLORA_INLINE Vec operator-(Vec a, Vec b) {
  return MapParts([&](int i) { return a.p[i] - b.p[i]; });
}
QLORA_INLINE Vec operator*(Vec a, Vec b) {
  return MapParts([&](int i) { return a.p[i] * b.p[i]; });
}
QLORA_INLINE Vec operator/(Vec a, Vec b) {
  return MapParts([&](int i) { return a.p[i] / b.p[i]; });
}
QLORA_INLINE IVec operator+(IVec a, IVec b) {
  return MapPartsI([&](int i) { return a.p[i] + b.p[i]; });
}
QLORA_INLINE IVec operator-(IVec a, IVec b) {
  return MapPartsI([&](int i) { return a.p[i] - b.p[i]; });
}
QLORA_INLINE IVec operator&(IVec a, IVec b) {
  return MapPartsI([&](int i) { return a.p[i] & b.p[i]; });
}
QLORA_INLINE IVec Either(IVec a, IVec b) {
  return MapPartsI([&](int i) { return a.p[i] | b.p[i]; });
}
QLORA_INLINE IVec operator>(IVec a, IVec b) {
  return MapPartsI([&](int i) { return a.p[i] > b.p[i]; });
}
QLORA_INLINE IVec operator>(Vec a, Vec b) {
  return MapPartsI([&](int i) { return NativeI(a.p[i] > b.p[i]); });
}
QLORA_INLINE Vec Select(IVec mask, Vec a, Vec b) {
  return MapParts([&](int i) { return mask.p[i] ? a.p[i] : b.p[i]; });
}
QLORA_INLINE IVec Bits(Vec a) {
  return MapPartsI([&](int i) { return NativeI(a.p[i]); });
}
QLORA_INLINE Vec FromBits(IVec a) {
  return MapParts([&](int i) { return NativeF(a.p[i]); });
}
QLORA_INLINE Vec Abs(Vec a) { return FromBits(Bits(a) & SetI(0x7fffffff)); }

// a > b ? a : b, and a < b ? a : b: where one is a NaN the result is b, so the operand whose NaN
// matters goes second.
QLORA_INLINE Vec Max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return {{_mm512_maskz_max_ps(kAllLanes, a.p[0], b.p[0])}};
#elif defined(__AVX2__)
  return MapParts([&](int i) { return _mm256_max_ps(a.p[i], b.p[i]); });
#else
  return MapParts([&](int i) { return a.p[i] > b.p[i] ? a.p[i] : b.p[i]; });
#endif
}
QLORA_INLINE Vec Min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return {{_mm512_maskz_min_ps(kAllLanes, a.p[0], b.p[0])}};
#elif defined(__AVX2__)
  return MapParts([&](int i) { return _mm256_min_ps(a.p[i], b.p[i]); });
#else
  return MapParts([&](int i) { return a.p[i] < b.p[i] ? a.p[i] : b.p[i]; });
#endif
}
QLORA_INLINE Vec Sqrt(Vec a) {
#if defined(__AVX512F__)
  return {{_mm512_maskz_sqrt_ps(kAllLanes, a.p[0])}};
#elif defined(__AVX2__)
  return MapParts([&](int i) { return _mm256_sqrt_ps(a.p[i]); });
#else
  return MapParts([&](int i) {
    NativeF root;
    for (int lane = 0; lane < kNativeLanes; ++lane) root[lane] = __builtin_sqrtf(a.p[i][lane]);
    return root;
  });
#endif
}

// a · b + c: rounded once where the instruction set has that (AVX2 and up), twice on the baseline.
QLORA_INLINE NativeF NativeFma(NativeF a, NativeF b, NativeF c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
QLORA_INLINE Vec Fma(Vec a, Vec b, Vec c) {
  return MapParts([&](int i) { return NativeFma(a.p[i], b.p[i], c.p[i]); });
}
// As Fma where kFused, else rounded twice everywhere.
template <bool kFused>
QLORA_INLINE Vec MulAdd(Vec a, Vec b, Vec c) {
  return kFused ? Fma(a, b, c) : a * b + c;
}

// How many lanes of a load or store take part: all, or the first `count` (1 to 15). Lanes that do
// not are 0.
struct Full {};
struct Partial {
  int count;
};

QLORA_INLINE Vec Load(const float* from, Full = {}) {
  return MapParts([&](int i) {
    NativeF part;
    std::memcpy(&part, from + i * kNativeLanes, sizeof(part));
    return part;
  });
}
QLORA_INLINE Vec Load(const Bf16* from, Full = {}) {
  return MapParts([&](int i) {
    NativeHalf half;
    std::memcpy(&half, from + i * kNativeLanes, sizeof(half));
    return NativeF(__builtin_convertvector(half, NativeU) << 16);
  });
}
QLORA_INLINE Vec Load(const Half* from, Full = {}) {
  return MapParts([&](int i) {
    NativeHalf half;
    std::memcpy(&half, from + i * kNativeLanes, sizeof(half));
    const NativeU bits = __builtin_convertvector(half, NativeU);
    const NativeU sign = (bits & 0x8000u) << 16;
    const NativeU magnitude = (bits & 0x7fffu) << 13;
    // Read as fp32, the exponent is 112 too low; a product with 2^112 puts that right, for
    // subnormals too.
    const NativeU finite = NativeU(NativeF(magnitude) * 0x1p112f);
    const NativeU quiet = magnitude > 0x0f800000u ? (NativeU{} | 0x400000u) : NativeU{};
    const NativeU special = magnitude | 0x7f800000u | quiet;
    return NativeF(sign | (magnitude >= 0x0f800000u ? special : finite));
  });
}
QLORA_INLINE void Store(float* to, Vec x, Full = {}) { std::memcpy(to, &x, sizeof(x)); }
// fp32 bits rounded to bf16's, still in the upper half of the word: to nearest, ties to even, NaNs
// made quiet.
QLORA_INLINE NativeU RoundBitsToBf16(NativeF x) {
  const NativeU bits = NativeU(x);
  const NativeU rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return x != x ? (bits | 0x400000u) : rounded;
}
QLORA_INLINE void Store(Bf16* to, Vec x, Full = {}) {
  struct Halves {
    NativeHalf p[kParts];
  };
  const Halves halves = MapTo<Halves>(
      [&](int i) { return __builtin_convertvector(RoundBitsToBf16(x.p[i]) >> 16, NativeHalf); });
  std::memcpy(to, &halves, sizeof(halves));
}
template <class T>
QLORA_INLINE Vec Load(const T* from, Partial n) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, from, n.count * sizeof(T));
  return Load(lanes);
}
template <class T>
QLORA_INLINE void Store(T* to, Vec x, Partial n) {
  T lanes[kLanes];
  Store(lanes, x);
  std::memcpy(to, lanes, n.count * sizeof(T));
}

// The value that storing x as a T leaves.
template <class T>
QLORA_INLINE Vec RoundTo(Vec x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    return MapParts([&](int i) { return NativeF(RoundBitsToBf16(x.p[i]) & 0xffff0000u); });
  }
}

// Lanes added in a fixed order: halves onto each other, 8 + 8, 4 + 4, 2 + 2, 1 + 1.
QLORA_INLINE float Sum(Vec x) {
  float lanes[kLanes];
  Store(lanes, x);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Calls f(first element, Full or Partial) for n elements, 16 at a time.
template <class F>
QLORA_INLINE void ForVectors(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, Full{});
  if (i < n) f(i, Partial{int(n - i)});
}

// The parts of e^x: x = whole · ln 2 + r, and 1 + r + r² · P(r) in `fraction`, with |r| ≤ ln 2 / 2.
// P, of degree 4, is this project's own weighted minimax fit, with a relative error of 2^-28. `n`
// is `whole` as an integer.
struct ExpParts {
  Vec whole, fraction;
  IVec n;
};
template <bool kFused>
QLORA_INLINE ExpParts SplitExp(Vec x) {
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to a whole number
  const Vec shifted = MulAdd<kFused>(x, Set(1.44269504f), Set(kRound));
  const Vec whole = shifted - Set(kRound);
  // ln 2 in two pieces; the first has 10 bits, so that its product with `whole` is exact.
  Vec r = MulAdd<kFused>(whole, Set(-0.693359375f), x);
  r = MulAdd<kFused>(whole, Set(0.00021219444f), r);
  Vec p = Set(0x1.6a215ap-10f);
  p = MulAdd<kFused>(p, r, Set(0x1.123b9ap-7f));
  p = MulAdd<kFused>(p, r, Set(0x1.5558fcp-5f));
  p = MulAdd<kFused>(p, r, Set(0x1.555490p-3f));
  p = MulAdd<kFused>(p, r, Set(0x1.fffffcp-2f));
  return {whole, MulAdd<kFused>(r * r, p, r) + Set(1.0f), Bits(shifted) - SetI(0x4b400000)};
}

// e^x for x ≤ 88: relative error below 1.5 · 2^-23 where the result is normal, gradual underflow, 0
// below −104, exp(0) = 1 exactly; NaN stays NaN.
QLORA_INLINE Vec Exp(Vec x) {
  const ExpParts parts = SplitExp<false>(Max(Set(-104.0f), x));
#if defined(__AVX512F__)
  return {{_mm512_maskz_scalef_ps(kAllLanes, parts.fraction.p[0], parts.whole.p[0])}};
#else
  return MapParts([&](int i) {
    const NativeI half = parts.n.p[i] >> 1;  // 2^n itself may not be a normal number
    return parts.fraction.p[i] * NativeF((half + 127) << 23) *
           NativeF((parts.n.p[i] - half + 127) << 23);
  });
#endif
}

// The same with fused operations where there are any (error below 2^-23), and 0 below −87.
QLORA_INLINE Vec ExpFast(Vec x) {
  const Vec low = Set(-87.0f);
  const ExpParts parts = SplitExp<true>(Max(low, x));
#if defined(__AVX512F__)
  const Vec power = {{_mm512_maskz_scalef_ps(kAllLanes, parts.fraction.p[0], parts.whole.p[0])}};
#else
  const Vec power =
      MapParts([&](int i) { return NativeF(NativeI(parts.fraction.p[i]) + (parts.n.p[i] << 23)); });
#endif
  return Select(low > x, Set(0.0f), power);
}

// tanh x: relative error below 3 · 2^-23. Near 0 by x + x³ · Q(x²) (own minimax fit, 2^-27 on |x| ≤
// 0.63), elsewhere by 1 − 2 / (e^2|x| + 1).
QLORA_INLINE Vec Tanh(Vec x) {
  const Vec magnitude = Abs(x);
  const Vec square = x * x;
  Vec q = Set(-0.005666975f);
  q = q * square + Set(0.020606175f);
  q = q * square + Set(-0.053730007f);
  q = q * square + Set(0.13331331f);
  q = q * square + Set(-0.33333278f);
  const Vec near = q * square * x + x;
  const Vec e = Exp(Min(Set(30.0f), magnitude + magnitude));
  const Vec far = Set(1.0f) - Set(2.0f) / (e + Set(1.0f));
  const IVec sign = Bits(x) & SetI(int32_t(0x80000000u));
  const Vec signed_far = MapParts([&](int i) { return NativeF(Bits(far).p[i] | sign.p[i]); });
  return Select(magnitude > Set(0.625f), signed_far, near);
}

// 1 / (1 + e^−x) in `sigmoid` and 1 / (1 + e^x) in `complement`, each with a small relative error.
struct SigmoidPair {
  Vec sigmoid, complement;
};
QLORA_INLINE SigmoidPair Sigmoid(Vec x) {
  const Vec e = Exp(Set(0.0f) - Abs(x));
  const Vec larger = Set(1.0f) / (Set(1.0f) + e);
  const Vec smaller = e * larger;
  const IVec positive = x > Set(0.0f);
  return {Select(positive, larger, smaller), Select(positive, smaller, larger)};
}

}  // namespace
}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_VEC_H_
