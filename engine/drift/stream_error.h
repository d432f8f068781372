// How far one residual stream is from another, token by token.

#ifndef QLORA_ENGINE_DRIFT_STREAM_ERROR_H_
#define QLORA_ENGINE_DRIFT_STREAM_ERROR_H_

#include <cstdint>

#include "kernels/tensor.h"

namespace qlora::engine {

// Sums over tokens: with a the first stream's row and b the second's,
//   cosine = a·b / (‖a‖ ‖b‖),  relative error = ‖b − a‖ / ‖a‖
// Every token counts the same, whatever its norm: of some models the first token's is a thousand
// times the others'. In fp64; rows in order, so that threads do not change it.
struct StreamError {
  double cosine = 0, relative_error = 0;
  int64_t tokens = 0;

  double Cosine() const { return tokens > 0 ? cosine / double(tokens) : 1; }
  double RelativeError() const { return tokens > 0 ? relative_error / double(tokens) : 0; }
  void Add(const StreamError& other);
};

// Host views of the same shape, bf16 or f32. Of a row of zeros in both the cosine is 1, the error
// 0.
StreamError CompareStreams(kernels::ConstTensor a, kernels::ConstTensor b, int threads);
// The error of `b` against `a`, relative to the norm of `scale` instead of a's.
StreamError CompareStreams(kernels::ConstTensor a, kernels::ConstTensor b,
                           kernels::ConstTensor scale, int threads);

// to = from in to's type (bf16 or f32); the same shape, without gaps.
void ConvertStream(kernels::ConstTensor from, kernels::Tensor to);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_STREAM_ERROR_H_
