#include "engine/drift/stream_error.h"

#include <cmath>
#include <vector>

#include "engine/data/parallel.h"
#include "engine/model/element_convert.h"

namespace qlora::engine {
namespace {

using kernels::ConstTensor;
using kernels::DType;

constexpr int64_t kRowsAtOnce = 64;

double At(const ConstTensor& t, int64_t row, int64_t col) {
  return t.dtype == DType::kF32 ? double(t.Row<float>(row)[col])
                                : double(float(t.Row<kernels::bf16>(row)[col]));
}

}  // namespace

void StreamError::Add(const StreamError& other) {
  cosine += other.cosine;
  relative_error += other.relative_error;
  tokens += other.tokens;
}

StreamError CompareStreams(ConstTensor a, ConstTensor b, ConstTensor scale, int threads) {
  std::vector<StreamError> rows(a.rows);
  ForEachInParallel(a.rows, threads, kRowsAtOnce, [&](int64_t r) {
    double aa = 0, bb = 0, ab = 0, error = 0, norm = 0;
    for (int64_t c = 0; c < a.cols; ++c) {
      const double x = At(a, r, c), y = At(b, r, c), s = At(scale, r, c);
      aa += x * x, bb += y * y, ab += x * y, error += (y - x) * (y - x), norm += s * s;
    }
    rows[r].tokens = 1;
    rows[r].cosine = aa * bb > 0 ? ab / std::sqrt(aa * bb) : (aa == bb ? 1 : 0);
    rows[r].relative_error = norm > 0 ? std::sqrt(error / norm) : 0;
  });
  StreamError sum;
  for (const StreamError& row : rows) sum.Add(row);
  return sum;
}

StreamError CompareStreams(ConstTensor a, ConstTensor b, int threads) {
  return CompareStreams(a, b, a, threads);
}

void ConvertStream(ConstTensor from, kernels::Tensor to) {
  ConvertElements(from.dtype, static_cast<const uint8_t*>(from.data), from.Count(), to.dtype,
                  to.data);
}

}  // namespace qlora::engine
