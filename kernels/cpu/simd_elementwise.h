// Embedding, RoPE and the gated activations, 16 elements at a time. Included by simd_table.h only:
// see vec.h.

#ifndef QLORA_KERNELS_CPU_SIMD_ELEMENTWISE_H_
#define QLORA_KERNELS_CPU_SIMD_ELEMENTWISE_H_

#include "kernels/cpu/simd.h"
#include "kernels/cpu/vec.h"

namespace qlora::kernels::cpu {
namespace {

template <class T>
QLORA_INLINE const T* RowOf(const ConstTensor& t, int64_t row) {
  return static_cast<const T*>(t.data) + row * t.pitch;
}
template <class T>
QLORA_INLINE T* RowOf(const Tensor& t, int64_t row) {
  return static_cast<T*>(t.data) + row * t.pitch;
}

// Calls f with a value of the element type, of which only the type matters.
template <class F>
QLORA_INLINE void WithFloatType(DType type, F f) {
  if (type == DType::kBf16) {
    f(Bf16{});
  } else if (type == DType::kF16) {
    f(Half{});
  } else {
    f(float{});
  }
}
// The same for activations, which are bf16 or fp32.
template <class F>
QLORA_INLINE void WithActivationType(DType type, F f) {
  if (type == DType::kBf16) {
    f(Bf16{});
  } else {
    f(float{});
  }
}

inline void EmbeddingForwardRows(const EmbeddingForward& op, int64_t begin, int64_t end) {
  const Vec scale = Set(op.scale);
  WithFloatType(op.table.dtype, [&](auto from_tag) {
    WithActivationType(op.y.dtype, [&](auto to_tag) {
      using From = decltype(from_tag);
      using To = decltype(to_tag);
      for (int64_t t = begin; t < end; ++t) {
        const From* from = RowOf<From>(op.table, *RowOf<int32_t>(op.ids, t));
        To* to = RowOf<To>(op.y, t);
        ForVectors(op.y.cols, [&](int64_t i, auto n) QLORA_LAMBDA_INLINE {
          Store(to + i, Load(from + i, n) * scale, n);
        });
      }
    });
  });
}

inline void EmbeddingBackwardColumns(const EmbeddingBackward& op, int64_t rows, int64_t begin,
                                     int64_t end) {
  const Vec scale = Set(op.scale);
  WithActivationType(op.dy.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t t = 0; t < rows; ++t) {
      const T* from = RowOf<T>(op.dy, t) + begin;
      float* to = RowOf<float>(op.dtable, *RowOf<int32_t>(op.ids, t)) + begin;
      ForVectors(end - begin, [&](int64_t i, auto n) QLORA_LAMBDA_INLINE {
        Store(to + i, Load(to + i, n) + Load(from + i, n) * scale, n);
      });
    }
  });
}

inline void RopeRows(const Rope& op, int64_t begin, int64_t end) {
  const int64_t half = op.cos.cols;
  const int64_t heads = op.head_size > 0 ? op.x.cols / op.head_size : 0;
  const Vec sign = Set(op.inverse ? -1.0f : 1.0f);
  WithActivationType(op.x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t t = begin; t < end; ++t) {
      const int32_t position = *RowOf<int32_t>(op.positions, t);
      const float* cos = RowOf<float>(op.cos, position);
      const float* sin = RowOf<float>(op.sin, position);
      for (int64_t head = 0; head < heads; ++head) {
        const T* x = RowOf<T>(op.x, t) + head * op.head_size;
        T* y = RowOf<T>(op.y, t) + head * op.head_size;
        ForVectors(half, [&](int64_t i, auto n) QLORA_LAMBDA_INLINE {
          const Vec c = Load(cos + i, n), s = Load(sin + i, n) * sign;
          const Vec low = Load(x + i, n), high = Load(x + half + i, n);
          Store(y + i, low * c - high * s, n);
          Store(y + half + i, high * c + low * s, n);
        });
        const int64_t rest = op.head_size - 2 * half;
        if (rest > 0 && x != y) std::memcpy(y + 2 * half, x + 2 * half, rest * sizeof(T));
      }
    }
  });
}

// act(z) and act'(z). GELU in its tanh form is z · σ(2u) with u = √(2/π) · (z + 0.044715 z³), which
// spares a tanh and the cancellation in 1 + tanh u.
struct ActivationValue {
  Vec value, derivative;
};
template <bool kDerivative>
QLORA_INLINE ActivationValue Activate(Activation activation, Vec z) {
  constexpr float kTwoRoot = 1.5957691216f;  // 2 √(2/π)
  constexpr float kCubic = 0.044715f;
  if (activation == Activation::kSilu) {
    const SigmoidPair s = Sigmoid(z);
    return {z * s.sigmoid, kDerivative ? s.sigmoid * (Set(1.0f) + z * s.complement) : z};
  }
  const Vec square = z * z;
  const SigmoidPair s = Sigmoid(Set(kTwoRoot) * (z * (Set(1.0f) + Set(kCubic) * square)));
  if (!kDerivative) return {z * s.sigmoid, z};
  const Vec inner = Set(kTwoRoot) * (Set(1.0f) + Set(3 * kCubic) * square);
  return {z * s.sigmoid, s.sigmoid * (Set(1.0f) + z * s.complement * inner)};
}

inline void GatedForwardRows(const GatedActivationForward& op, int64_t begin, int64_t end) {
  WithActivationType(op.out.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t t = begin; t < end; ++t) {
      const T* gate = RowOf<T>(op.gate, t);
      const T* up = RowOf<T>(op.up, t);
      T* out = RowOf<T>(op.out, t);
      ForVectors(op.out.cols, [&](int64_t i, auto n) QLORA_LAMBDA_INLINE {
        const Vec value = Activate<false>(op.activation, Load(gate + i, n)).value;
        Store(out + i, value * Load(up + i, n), n);
      });
    }
  });
}

inline void GatedBackwardRows(const GatedActivationBackward& op, int64_t begin, int64_t end) {
  WithActivationType(op.dgate.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t t = begin; t < end; ++t) {
      const T* gate = RowOf<T>(op.gate, t);
      const T* up = RowOf<T>(op.up, t);
      const T* dout = RowOf<T>(op.dout, t);
      T* dgate = RowOf<T>(op.dgate, t);
      T* dup = RowOf<T>(op.dup, t);
      ForVectors(op.dgate.cols, [&](int64_t i, auto n) QLORA_LAMBDA_INLINE {
        const ActivationValue a = Activate<true>(op.activation, Load(gate + i, n));
        const Vec d = Load(dout + i, n), u = Load(up + i, n);
        Store(dgate + i, d * u * a.derivative, n);
        Store(dup + i, d * a.value, n);
      });
    }
  });
}

}  // namespace
}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_SIMD_ELEMENTWISE_H_
