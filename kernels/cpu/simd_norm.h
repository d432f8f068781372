// RMSNorm and the softmax of the loss: rows with a sum in them. Included by simd_table.h only: see
// vec.h.

#ifndef QLORA_KERNELS_CPU_SIMD_NORM_H_
#define QLORA_KERNELS_CPU_SIMD_NORM_H_

#include "kernels/cpu/simd_elementwise.h"

namespace qlora::kernels::cpu {
namespace {

inline void RmsNormForwardRows(const RmsNormForward& op, int64_t begin, int64_t end) {
  const int64_t cols = op.x.cols;
  const bool add = op.residual.data != nullptr;
  const Vec offset = Set(op.weight_offset);
  WithActivationType(op.x.dtype, [&](auto tag) {
    using T = decltype(tag);
    WithFloatType(op.weight.dtype, [&](auto weight_tag) {
      using W = decltype(weight_tag);
      const W* weight = RowOf<W>(op.weight, 0);
      for (int64_t r = begin; r < end; ++r) {
        const T* s = RowOf<T>(op.x, r);
        Vec squares = Set(0.0f);
        if (add) {
          const T* residual = RowOf<T>(op.residual, r);
          T* sum = RowOf<T>(op.sum, r);
          ForVectors(cols, [&](int64_t i, auto n) QLORA_LAMBDA_INLINE {
            const Vec total = RoundTo<T>(Load(s + i, n) + Load(residual + i, n));
            Store(sum + i, total, n);
            squares = squares + total * total;
          });
          s = sum;
        } else {
          ForVectors(cols, [&](int64_t i, auto n) QLORA_LAMBDA_INLINE {
            const Vec x = Load(s + i, n);
            squares = squares + x * x;
          });
        }
        const float mean = cols > 0 ? Sum(squares) / float(cols) : 0.0f;
        const float rstd = 1.0f / __builtin_sqrtf(mean + op.epsilon);
        *RowOf<float>(op.rstd, r) = rstd;
        T* y = RowOf<T>(op.y, r);
        const Vec factor = Set(rstd);
        ForVectors(cols, [&](int64_t i, auto n) QLORA_LAMBDA_INLINE {
          Store(y + i, Load(s + i, n) * factor * (offset + Load(weight + i, n)), n);
        });
      }
    });
  });
}

inline void RmsNormBackwardRows(const RmsNormBackward& op, int64_t begin, int64_t end) {
  const int64_t cols = op.dy.cols;
  const Vec offset = Set(op.weight_offset);
  WithActivationType(op.dy.dtype, [&](auto tag) {
    using T = decltype(tag);
    WithFloatType(op.weight.dtype, [&](auto weight_tag) {
      using W = decltype(weight_tag);
      const W* weight = RowOf<W>(op.weight, 0);
      for (int64_t r = begin; r < end; ++r) {
        const T* dy = RowOf<T>(op.dy, r);
        const T* x = RowOf<T>(op.x, r);
        const T* dresidual = op.dresidual.data != nullptr ? RowOf<T>(op.dresidual, r) : nullptr;
        T* dx = RowOf<T>(op.dx, r);
        const Vec rstd = Set(*RowOf<float>(op.rstd, r));
        Vec products = Set(0.0f);
        ForVectors(cols, [&](int64_t i, auto n) QLORA_LAMBDA_INLINE {
          const Vec g = Load(dy + i, n) * (offset + Load(weight + i, n));
          products = products + g * (Load(x + i, n) * rstd);
        });
        const Vec mean = Set(cols > 0 ? Sum(products) / float(cols) : 0.0f);
        ForVectors(cols, [&](int64_t i, auto n) QLORA_LAMBDA_INLINE {
          const Vec g = Load(dy + i, n) * (offset + Load(weight + i, n));
          Vec ds = rstd * (g - Load(x + i, n) * rstd * mean);
          if (dresidual != nullptr) ds = ds + Load(dresidual + i, n);
          Store(dx + i, ds, n);
        });
      }
    });
  });
}

// Rows are summed in groups of 64, the groups then in order, so that the rounding error grows with
// rows / 64.
inline void RmsNormBackwardWeightColumns(const RmsNormBackward& op, int64_t rows, int64_t begin,
                                         int64_t end) {
  constexpr int64_t kGroup = 64;
  WithActivationType(op.dy.dtype, [&](auto tag) {
    using T = decltype(tag);
    float* dweight = RowOf<float>(op.dweight, 0) + begin;
    ForVectors(end - begin, [&](int64_t i, auto n) QLORA_LAMBDA_INLINE {
      Vec total = Set(0.0f);
      for (int64_t group = 0; group < rows; group += kGroup) {
        const int64_t stop = group + kGroup < rows ? group + kGroup : rows;
        Vec sum = Set(0.0f);
        for (int64_t r = group; r < stop; ++r) {
          const Vec dy = Load(RowOf<T>(op.dy, r) + begin + i, n);
          const Vec x = Load(RowOf<T>(op.x, r) + begin + i, n);
          sum = sum + dy * (x * Set(*RowOf<float>(op.rstd, r)));
        }
        total = total + sum;
      }
      Store(dweight + i, Load(dweight + i, n) + total, n);
    });
  });
}

inline LogitStats LogitStatsOfRow(float* z, int64_t n, float softcap) {
  const float infinity = __builtin_inff();
  Vec largest = Set(-infinity);
  const Vec cap = Set(softcap), inverse_cap = Set(softcap > 0 ? 1.0f / softcap : 0.0f);
  ForVectors(n, [&](int64_t i, auto count) QLORA_LAMBDA_INLINE {
    Vec x = Load(z + i, count);
    if (softcap > 0) {
      x = cap * Tanh(x * inverse_cap);
      Store(z + i, x, count);
    }
    if constexpr (__is_same(decltype(count), Full)) largest = Max(x, largest);
  });
  float lanes[kLanes];
  Store(lanes, largest);
  LogitStats stats = {-infinity, 0.0};
  for (float lane : lanes) stats.max = lane > stats.max ? lane : stats.max;
  for (int64_t i = n / kLanes * kLanes; i < n; ++i) stats.max = z[i] > stats.max ? z[i] : stats.max;

  // fp32 within stretches, fp64 between them: a vocabulary of 150,000 terms would cost fp32 lanes
  // 13 bits.
  constexpr int64_t kStretch = 2048;
  const Vec max = Set(stats.max);
  for (int64_t begin = 0; begin < n; begin += kStretch) {
    const int64_t length = begin + kStretch < n ? kStretch : n - begin;
    Vec sum = Set(0.0f);
    const int64_t whole = length / kLanes * kLanes;
    ForVectors(whole, [&](int64_t i, auto)
                          QLORA_LAMBDA_INLINE { sum = sum + Exp(Load(z + begin + i) - max); });
    stats.sum += Sum(sum);
    if (whole < length) {
      float rest[kLanes];
      Store(rest, Exp(Load(z + begin + whole, Partial{int(length - whole)}) - max));
      for (int64_t i = whole; i < length; ++i) stats.sum += rest[i - whole];
    }
  }
  return stats;
}

inline void LogitGradientOfRow(float* z, int64_t n, float softcap, LogitStats stats, int64_t target,
                               bool bf16) {
  const Vec max = Set(stats.max), inverse_sum = Set(float(1.0 / stats.sum));
  const Vec inverse_cap = Set(softcap > 0 ? 1.0f / softcap : 0.0f);
  const auto gradient = [&](Vec x, Vec onehot) QLORA_LAMBDA_INLINE {
    const Vec p = Exp(x - max) * inverse_sum - onehot;
    const Vec t = x * inverse_cap;
    return softcap > 0 ? p * (Set(1.0f) - t * t) : p;
  };
  const Vec at_target = gradient(Set(z[target]), Set(1.0f));
  // As bf16 the row shrinks to its first half: element i is written at byte 2i, behind what has
  // been read.
  WithActivationType(bf16 ? DType::kBf16 : DType::kF32, [&](auto tag) {
    using T = decltype(tag);
    T* to = reinterpret_cast<T*>(z);
    ForVectors(n, [&](int64_t i, auto count) QLORA_LAMBDA_INLINE {
      Store(to + i, gradient(Load(z + i, count), Set(0.0f)), count);
    });
    Store(to + target, at_target, Partial{1});
  });
}

}  // namespace
}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_SIMD_NORM_H_
