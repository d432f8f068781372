// Attention of one kv head of one document, in blocks of 64 pairs × 64 keys. Included by
// simd_table.h only: see vec.h.
//
// A tile of queries keeps its pairs in the lanes: scores lie transposed, [key][pair], so that
// softmax needs no sum across lanes, the queries are transposed once for all keys, and keys and
// values are read as they lie. A tile of keys (dk and dv) is the mirror image. Blocks begin at the
// document's first key and first pair, lanes never mix, and a block in which a pair sees nothing
// leaves its sums as they were: what a pair gets depends on its document alone. dk, dv and dq are
// made in two passes that each compute the scores again (7 products instead of 5), so that both run
// in a fixed order on any number of threads without partial sums in memory.

#ifndef QLORA_KERNELS_CPU_SIMD_ATTENTION_H_
#define QLORA_KERNELS_CPU_SIMD_ATTENTION_H_

#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_elementwise.h"
#include "kernels/cpu/simd_product.h"

namespace qlora::kernels::cpu {
namespace {

constexpr int64_t kBlock = kPanelColumns;
static_assert(kBlock == kAttentionBlock);
constexpr int64_t kMaxHead = 256;
constexpr int64_t kPanelFloats = kMaxHead * kBlock;

// A worker's scratch, all of it: 6 panels of 64 KiB, two score blocks of 16 KiB and some rows.
struct AttentionScratch {
  float left[kPanelFloats], other_left[kPanelFloats];    // the moving side, rows of head_size
  float right[kPanelFloats], other_right[kPanelFloats];  // the tile's own side, transposed
  float sum[kPanelFloats], other_sum[kPanelFloats];      // results, transposed
  float score[kBlock * kBlock], gradient[kBlock * kBlock];
  float max[kBlock], total[kBlock], lse[kBlock], delta[kBlock];
  int32_t position[kBlock], lowest[kBlock];
};
static_assert(sizeof(AttentionScratch) <= size_t{2} << 20);

QLORA_INLINE int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }
QLORA_INLINE int64_t Most(int64_t a, int64_t b) { return a > b ? a : b; }
QLORA_INLINE int64_t WholeVectors(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }
QLORA_INLINE IVec LoadI(const int32_t* from) {
  IVec result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}

// Rows of one side as fp32 rows of head_size in `to`; behind them zeros up to whole vectors.
template <class T>
inline void WidenKeys(const void* from, int64_t pitch, int64_t begin, int64_t count,
                      int64_t head_size, float* to) {
  const T* row = static_cast<const T*>(from) + begin * pitch;
  for (int64_t i = 0; i < count; ++i) WidenRow(row + i * pitch, head_size, to + i * head_size);
  std::memset(to + count * head_size, 0, (WholeVectors(count) - count) * head_size * sizeof(float));
}
template <class T>
inline void WidenPairs(const void* from, int64_t pitch, const AttentionView& view, int64_t begin,
                       int64_t count, float* to) {
  const int64_t d = view.head_size;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t query = (begin + i) / view.group, head = (begin + i) % view.group;
    WidenRow(static_cast<const T*>(from) + query * pitch + head * d, d, to + i * d);
  }
  std::memset(to + count * d, 0, (WholeVectors(count) - count) * d * sizeof(float));
}
template <class T>
inline void NarrowPairs(const float* from, float scale, const AttentionView& view, int64_t begin,
                        int64_t count, void* to, int64_t pitch) {
  const int64_t d = view.head_size;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t query = (begin + i) / view.group, head = (begin + i) % view.group;
    NarrowRow(from + i * d, d, scale, static_cast<T*>(to) + query * pitch + head * d);
  }
}

// The keys that some pair of [begin, end) sees: whole blocks from the first, up to the last.
struct KeyRange {
  int64_t first_position, last_position, begin, end;
};
inline KeyRange KeysOf(const AttentionView& view, int64_t begin, int64_t end) {
  const int64_t offset = view.keys - view.queries;
  const int64_t first = begin / view.group + offset, last = (end - 1) / view.group + offset;
  const int64_t lowest = view.window > 0 ? Most(0, first - view.window + 1) : 0;
  return {first, last, lowest / kBlock * kBlock, Least(view.keys, last + 1)};
}
// Whether a block of keys has one that a pair of the range does not see.
QLORA_INLINE bool NeedsMask(const AttentionView& view, const KeyRange& range, int64_t key,
                            int64_t count) {
  return key + count - 1 > range.first_position ||
         (view.window > 0 && key <= range.last_position - view.window);
}
// Position of each pair and the lowest key that it sees.
inline void FillPositions(const AttentionView& view, int64_t begin, AttentionScratch& s) {
  const int64_t offset = view.keys - view.queries;
  for (int64_t i = 0; i < kBlock; ++i) {
    const int64_t position = (begin + i) / view.group + offset;
    s.position[i] = int32_t(position);
    s.lowest[i] = int32_t(view.window > 0 ? Most(0, position - view.window + 1) : 0);
  }
}

QLORA_INLINE Vec Cap(Vec z, float softcap, float inverse) {
  return Set(softcap) * Tanh(z * Set(inverse));
}

// Scores of a [key][pair] block to probabilities under a running maximum; rescales the sums made
// under the old one.
template <class T, bool kMasked>
inline void SoftmaxBlock(const AttentionView& view, int64_t key, int64_t keys, int64_t columns,
                         AttentionScratch& s) {
  const float infinity = __builtin_inff();
  const float inverse_cap = view.softcap > 0 ? 1.0f / view.softcap : 0.0f;
  const Vec scale = Set(view.scale);
  for (int64_t c = 0; c < columns; c += kLanes) {
    float* score = s.score + c;
    const Vec old_max = Load(s.max + c);
    const IVec position = LoadI(s.position + c), lowest = LoadI(s.lowest + c);
    Vec max = old_max;
    for (int64_t i = 0; i < keys; ++i) {
      Vec z = Load(score + i * kBlock) * scale;
      if (view.softcap > 0) z = Cap(z, view.softcap, inverse_cap);
      if (kMasked) {
        const IVec j = SetI(int32_t(key + i));
        z = Select(j > position, Set(-infinity), z);
        z = Select(lowest > j, Set(-infinity), z);
      }
      max = Max(z, max);
      Store(score + i * kBlock, z);
    }
    // A pair that has seen no key yet has maximum −∞, and −∞ − −∞ is a NaN.
    const Vec base = Select(max > Set(-infinity), max, Set(0.0f));
    const Vec rescale = ExpFast(old_max - base);
    Vec total = Load(s.total + c) * rescale;
    for (int64_t i = 0; i < keys; ++i) {
      const Vec p = ExpFast(Load(score + i * kBlock) - base);
      total = total + p;
      Store(score + i * kBlock, RoundTo<T>(p));
    }
    Store(s.max + c, max);
    Store(s.total + c, total);
    for (int64_t i = 0; i < view.head_size; ++i) {
      Store(s.sum + i * kBlock + c, Load(s.sum + i * kBlock + c) * rescale);
    }
  }
}

template <class T>
inline void ForwardTile(const AttentionView& view, int64_t begin, int64_t end,
                        AttentionScratch& s) {
  const int64_t d = view.head_size, count = end - begin, columns = WholeVectors(count);
  WidenPairs<T>(view.q, view.q_pitch, view, begin, count, s.left);
  Transpose(s.left, d, columns, d, s.right, kBlock);
  std::memset(s.sum, 0, d * kBlock * sizeof(float));
  FillPositions(view, begin, s);
  for (int64_t i = 0; i < kBlock; ++i) {
    s.max[i] = -__builtin_inff();
    s.total[i] = 0.0f;
  }
  const KeyRange range = KeysOf(view, begin, end);
  for (int64_t key = range.begin; key < range.end; key += kBlock) {
    const int64_t keys = Least(kBlock, range.end - key);
    WidenKeys<T>(view.k, view.k_pitch, key, keys, d, s.left);
    Product({s.left, d, 1}, keys, d, s.right, s.score, columns, false);
    if (NeedsMask(view, range, key, keys)) {
      SoftmaxBlock<T, true>(view, key, keys, columns, s);
    } else {
      SoftmaxBlock<T, false>(view, key, keys, columns, s);
    }
    WidenKeys<T>(view.v, view.v_pitch, key, keys, d, s.left);
    Product({s.left, 1, d}, d, keys, s.score, s.sum, columns, true);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t query = (begin + i) / view.group, head = (begin + i) % view.group;
    view.lse[query * view.lse_pitch + head] = float(s.max[i] + __builtin_log(double(s.total[i])));
    s.total[i] = s.total[i] == 0.0f ? 0.0f : 1.0f / s.total[i];
  }
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      Store(s.sum + i * kBlock + c, Load(s.sum + i * kBlock + c) * Load(s.total + c));
    }
  }
  Transpose(s.sum, kBlock, d, columns, s.left, d);
  NarrowPairs<T>(s.left, 1.0f, view, begin, count, view.o, view.o_pitch);
}

// p and dz of a vector of scores. `visible` is read where kMasked.
struct ScoreGradient {
  Vec p, dz;
};
template <bool kMasked>
QLORA_INLINE ScoreGradient BackwardScore(const AttentionView& view, Vec product, Vec dp, Vec lse,
                                         Vec delta, IVec hidden, float inverse_cap) {
  Vec z = product * Set(view.scale);
  if (view.softcap > 0) z = Cap(z, view.softcap, inverse_cap);
  Vec p = ExpFast(z - lse);
  if (kMasked) p = Select(hidden, Set(0.0f), p);
  Vec dz = p * (dp - delta);
  if (view.softcap > 0) {
    const Vec t = z * Set(inverse_cap);
    dz = dz * (Set(1.0f) - t * t);
  }
  return {p, dz};
}

// dz of a [key][pair] block, in place of its scores.
template <class T, bool kMasked>
inline void QueryGradientBlock(const AttentionView& view, int64_t key, int64_t keys,
                               int64_t columns, AttentionScratch& s) {
  const float inverse_cap = view.softcap > 0 ? 1.0f / view.softcap : 0.0f;
  for (int64_t c = 0; c < columns; c += kLanes) {
    const IVec position = LoadI(s.position + c), lowest = LoadI(s.lowest + c);
    const Vec lse = Load(s.lse + c), delta = Load(s.delta + c);
    for (int64_t i = 0; i < keys; ++i) {
      const IVec j = SetI(int32_t(key + i));
      const int64_t at = i * kBlock + c;
      const IVec hidden = kMasked ? Either(j > position, lowest > j) : j;
      const ScoreGradient g = BackwardScore<kMasked>(
          view, Load(s.score + at), Load(s.gradient + at), lse, delta, hidden, inverse_cap);
      Store(s.score + at, RoundTo<T>(g.dz));
    }
  }
}

template <class T>
inline void BackwardQueriesTile(const AttentionView& view, int64_t begin, int64_t end,
                                AttentionScratch& s) {
  const int64_t d = view.head_size, count = end - begin, columns = WholeVectors(count);
  WidenPairs<T>(view.q, view.q_pitch, view, begin, count, s.left);
  Transpose(s.left, d, columns, d, s.right, kBlock);
  WidenPairs<T>(view.dout, view.dout_pitch, view, begin, count, s.left);
  Transpose(s.left, d, columns, d, s.other_right, kBlock);
  std::memset(s.sum, 0, d * kBlock * sizeof(float));
  FillPositions(view, begin, s);
  for (int64_t i = 0; i < kBlock; ++i) {
    const int64_t query = (begin + i) / view.group, head = (begin + i) % view.group;
    s.lse[i] = i < count ? view.lse[query * view.lse_pitch + head] : 0.0f;
    s.delta[i] = i < count ? view.delta[query * view.delta_pitch + head] : 0.0f;
  }
  const KeyRange range = KeysOf(view, begin, end);
  for (int64_t key = range.begin; key < range.end; key += kBlock) {
    const int64_t keys = Least(kBlock, range.end - key);
    WidenKeys<T>(view.k, view.k_pitch, key, keys, d, s.left);
    WidenKeys<T>(view.v, view.v_pitch, key, keys, d, s.other_left);
    Product({s.left, d, 1}, keys, d, s.right, s.score, columns, false);
    Product({s.other_left, d, 1}, keys, d, s.other_right, s.gradient, columns, false);
    if (NeedsMask(view, range, key, keys)) {
      QueryGradientBlock<T, true>(view, key, keys, columns, s);
    } else {
      QueryGradientBlock<T, false>(view, key, keys, columns, s);
    }
    Product({s.left, 1, d}, d, keys, s.score, s.sum, columns, true);
  }
  Transpose(s.sum, kBlock, d, columns, s.left, d);
  NarrowPairs<T>(s.left, view.scale, view, begin, count, view.dq, view.dq_pitch);
}

// p and dz of a [pair][key] block, in place of its scores and of do · vᵀ.
template <class T, bool kMasked>
inline void KeyGradientBlock(const AttentionView& view, int64_t key, int64_t pairs, int64_t columns,
                             AttentionScratch& s) {
  const float inverse_cap = view.softcap > 0 ? 1.0f / view.softcap : 0.0f;
  alignas(64) static constexpr int32_t kCount[kLanes] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                         8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t i = 0; i < pairs; ++i) {
    const Vec lse = Set(s.lse[i]), delta = Set(s.delta[i]);
    const IVec position = SetI(s.position[i]), lowest = SetI(s.lowest[i]);
    for (int64_t c = 0; c < columns; c += kLanes) {
      const IVec j = SetI(int32_t(key + c)) + LoadI(kCount);
      const int64_t at = i * kBlock + c;
      const IVec hidden = kMasked ? Either(j > position, lowest > j) : j;
      const ScoreGradient g = BackwardScore<kMasked>(
          view, Load(s.score + at), Load(s.gradient + at), lse, delta, hidden, inverse_cap);
      Store(s.score + at, RoundTo<T>(g.p));
      Store(s.gradient + at, RoundTo<T>(g.dz));
    }
  }
}

template <class T>
inline void NarrowKeys(const float* from, float scale, int64_t begin, int64_t count, int64_t d,
                       void* to, int64_t pitch) {
  for (int64_t i = 0; i < count; ++i) {
    NarrowRow(from + i * d, d, scale, static_cast<T*>(to) + (begin + i) * pitch);
  }
}

template <class T>
inline void BackwardKeysTile(const AttentionView& view, int64_t begin, int64_t end,
                             AttentionScratch& s) {
  const int64_t d = view.head_size, count = end - begin, columns = WholeVectors(count);
  WidenKeys<T>(view.k, view.k_pitch, begin, count, d, s.left);
  Transpose(s.left, d, columns, d, s.right, kBlock);
  WidenKeys<T>(view.v, view.v_pitch, begin, count, d, s.left);
  Transpose(s.left, d, columns, d, s.other_right, kBlock);
  std::memset(s.sum, 0, d * kBlock * sizeof(float));
  std::memset(s.other_sum, 0, d * kBlock * sizeof(float));
  const int64_t offset = view.keys - view.queries;
  const int64_t first_pair = Most(0, begin - offset) * view.group;
  const int64_t last_query =
      view.window > 0 ? end - 1 + view.window - 1 - offset : view.queries - 1;
  const int64_t last_pair = (Least(view.queries - 1, last_query) + 1) * view.group;
  for (int64_t pair = first_pair / kBlock * kBlock; pair < last_pair; pair += kBlock) {
    const int64_t pairs = Least(kBlock, last_pair - pair);
    WidenPairs<T>(view.q, view.q_pitch, view, pair, pairs, s.left);
    WidenPairs<T>(view.dout, view.dout_pitch, view, pair, pairs, s.other_left);
    FillPositions(view, pair, s);
    for (int64_t i = 0; i < pairs; ++i) {
      const int64_t query = (pair + i) / view.group, head = (pair + i) % view.group;
      s.lse[i] = view.lse[query * view.lse_pitch + head];
      s.delta[i] = view.delta[query * view.delta_pitch + head];
    }
    Product({s.left, d, 1}, pairs, d, s.right, s.score, columns, false);
    Product({s.other_left, d, 1}, pairs, d, s.other_right, s.gradient, columns, false);
    const bool masked = end - 1 > s.position[0] || begin < s.lowest[pairs - 1];
    if (masked) {
      KeyGradientBlock<T, true>(view, begin, pairs, columns, s);
    } else {
      KeyGradientBlock<T, false>(view, begin, pairs, columns, s);
    }
    Product({s.other_left, 1, d}, d, pairs, s.score, s.other_sum, columns, true);
    Product({s.left, 1, d}, d, pairs, s.gradient, s.sum, columns, true);
  }
  Transpose(s.sum, kBlock, d, columns, s.left, d);
  NarrowKeys<T>(s.left, view.scale, begin, count, d, view.dk, view.dk_pitch);
  Transpose(s.other_sum, kBlock, d, columns, s.left, d);
  NarrowKeys<T>(s.left, 1.0f, begin, count, d, view.dv, view.dv_pitch);
}

inline void AttentionDelta(const AttentionView& view, int64_t begin, int64_t end) {
  const int64_t d = view.head_size;
  WithActivationType(view.is_bf16 ? DType::kBf16 : DType::kF32, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t query = pair / view.group, head = pair % view.group;
      const T* o = static_cast<const T*>(view.o) + query * view.o_pitch + head * d;
      const T* dout = static_cast<const T*>(view.dout) + query * view.dout_pitch + head * d;
      Vec sum = Set(0.0f);
      ForVectors(d, [&](int64_t i, auto n)
                        QLORA_LAMBDA_INLINE { sum = sum + Load(o + i, n) * Load(dout + i, n); });
      view.delta[query * view.delta_pitch + head] = Sum(sum);
    }
  });
}

#define QLORA_ATTENTION_KERNEL(Name, Tile)                                                    \
  inline void Name(const AttentionView& view, int64_t begin, int64_t end, uint8_t* scratch) { \
    AttentionScratch& s = *reinterpret_cast<AttentionScratch*>(scratch);                      \
    view.is_bf16 ? Tile<Bf16>(view, begin, end, s) : Tile<float>(view, begin, end, s);        \
  }
QLORA_ATTENTION_KERNEL(AttentionForwardTile, ForwardTile)
QLORA_ATTENTION_KERNEL(AttentionBackwardQueries, BackwardQueriesTile)
QLORA_ATTENTION_KERNEL(AttentionBackwardKeys, BackwardKeysTile)
#undef QLORA_ATTENTION_KERNEL

}  // namespace
}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_SIMD_ATTENTION_H_
