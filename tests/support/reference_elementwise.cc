// References of the ops that work row by row: embedding, RMSNorm, rotary embedding, gated
// activations.

#include <algorithm>
#include <cmath>

#include "tests/support/operand_memory.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {

Expectation Reference(const EmbeddingForward& op) {
  Expectation result = {{"y", op.y}};
  const int64_t live = LiveCount(op.live_rows, op.y.rows);
  for (int64_t t = 0; t < live; ++t) {
    for (int64_t c = 0; c < op.y.cols; ++c) {
      const double y = double(op.scale) * Get(op.table, op.ids.Row<int32_t>(t)[0], c);
      // One row copied as it is needs no rounding at all.
      const bool exact = op.scale == 1.0f && op.table.dtype == op.y.dtype;
      result[0].Set(t, c, y, exact ? 0.0 : Bound(1, std::abs(y), op.y.dtype, y));
    }
  }
  return result;
}

Expectation Reference(const EmbeddingBackward& op) {
  Expectation result = {{"dtable", op.dtable}};
  const int64_t live = LiveCount(op.live_rows, op.dy.rows), width = op.dtable.cols;
  Matrix sum(op.dtable.rows, width), magnitude(op.dtable.rows, width);
  std::vector<int> depth(op.dtable.rows);
  for (int64_t t = 0; t < live; ++t) {
    const int64_t id = op.ids.Row<int32_t>(t)[0];
    ++depth[id];
    for (int64_t c = 0; c < width; ++c) {
      const double term = double(op.scale) * Get(op.dy, t, c);
      sum(id, c) += term;
      magnitude(id, c) += std::abs(term);
    }
  }
  for (int64_t v = 0; v < op.dtable.rows; ++v) {
    if (depth[v] == 0) continue;
    for (int64_t c = 0; c < width; ++c) {
      const double old = Get(op.dtable, v, c), value = old + sum(v, c);
      result[0].Set(v, c, value,
                    Bound(depth[v] + 1, magnitude(v, c) + std::abs(old), DType::kF32, value));
    }
  }
  return result;
}

Expectation Reference(const RmsNormForward& op) {
  const int64_t rows =
      op.live_rows ? LiveCount(op.live_rows, op.x.rows / op.rows_per_token) * op.rows_per_token
                   : op.x.rows;
  const int64_t width = op.x.cols;
  Expectation result = {{"y", op.y}, {"rstd", op.rstd}};
  if (op.residual) result.emplace_back("sum", op.sum);
  Computed normed(op.products.empty() ? 0 : op.x.rows, width);
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> s(width);
    double squares = 0;
    for (int64_t c = 0; c < width; ++c) {
      s[c] = Get(op.x, r, c);
      if (op.residual) {
        // A rounding point of the formula: added in fp32, rounded to sum's type, read back by the
        // norm.
        float sum = float(s[c]) + float(Get(op.residual, r, c));
        if (op.sum.dtype == DType::kBf16) sum = quant::F32FromBf16(quant::Bf16FromF32(sum));
        s[c] = sum;
        result[2].SetExact(r, c, sum);
      }
      squares += s[c] * s[c];
    }
    const double rstd = 1.0 / std::sqrt(squares / double(width) + double(op.epsilon));
    // The sum is good to width + 1 roundings; mean, epsilon, root and quotient add one each. The
    // power −½ halves what came before it.
    const double rstd_error = ((double(width) + 3) / 2 + 3) * kU32;
    result[1].Set(r, 0, rstd, rstd * rstd_error + HalfUlp(DType::kF32, rstd));
    for (int64_t c = 0; c < width; ++c) {
      const double y = s[c] * rstd * (double(op.weight_offset) + Get(op.weight, 0, c));
      const double bound = Bound(3, std::abs(y), op.y.dtype, y, rstd_error * std::abs(y));
      result[0].Set(r, c, y, bound);
      if (!op.products.empty()) normed.value(r, c) = y, normed.error(r, c) = bound;
    }
  }
  for (const FirstProduct& product : op.products) {
    ExpectFirstProduct(normed, product, rows, op.x.dtype, result);
  }
  return result;
}

Expectation Reference(const RmsNormBackward& op) {
  const int64_t rows =
      op.live_rows ? LiveCount(op.live_rows, op.x.rows / op.rows_per_token) * op.rows_per_token
                   : op.x.rows;
  const int64_t width = op.x.cols;
  Expectation result = {{"dx", op.dx}};
  Matrix dweight(1, width), magnitude(1, width);
  for (int64_t r = 0; r < rows; ++r) {
    const double rstd = Get(op.rstd, r, 0);
    std::vector<double> g(width), normed(width);
    double mean = 0, mean_magnitude = 0;
    for (int64_t c = 0; c < width; ++c) {
      const double dy = Get(op.dy, r, c);
      g[c] = dy * (double(op.weight_offset) + Get(op.weight, 0, c));
      normed[c] = Get(op.x, r, c) * rstd;
      mean += g[c] * normed[c] / double(width);
      mean_magnitude += std::abs(g[c] * normed[c]) / double(width);
      dweight(0, c) += dy * normed[c];
      magnitude(0, c) += std::abs(dy * normed[c]);
    }
    // Each term of the mean carries four roundings of its own.
    const double mean_error = (double(width) + 5) * kU32 * mean_magnitude;
    for (int64_t c = 0; c < width; ++c) {
      const double past = op.dresidual ? Get(op.dresidual, r, c) : 0.0;
      const double dx = rstd * (g[c] - normed[c] * mean) + past;
      const double terms = rstd * (std::abs(g[c]) + std::abs(normed[c] * mean)) + std::abs(past);
      result[0].Set(r, c, dx,
                    Bound(7, terms, op.dx.dtype, dx, rstd * std::abs(normed[c]) * mean_error));
    }
  }
  if (op.dweight) {
    Expected& out = result.emplace_back("dweight", op.dweight);
    for (int64_t c = 0; c < width && rows > 0; ++c) {
      const double old = Get(op.dweight, 0, c), value = old + dweight(0, c);
      out.Set(0, c, value,
              Bound(double(rows) + 3, magnitude(0, c) + std::abs(old), DType::kF32, value));
    }
  }
  return result;
}

Expectation Reference(const Rope& op) {
  Expectation result = {{"y", op.y}};
  const int64_t live = LiveCount(op.live_rows, op.x.rows), half = op.cos.cols;
  for (int64_t t = 0; t < live; ++t) {
    const int64_t position = op.positions.Row<int32_t>(t)[0];
    for (int64_t c = 0; c < op.x.cols; ++c) {
      const int64_t i = c % op.head_size;
      if (i >= 2 * half) {
        result[0].SetExact(t, c, Get(op.x, t, c));
        continue;
      }
      const bool low = i < half;
      const double cosine = Get(op.cos, position, low ? i : i - half);
      const double sine = Get(op.sin, position, low ? i : i - half) * (op.inverse ? -1 : 1);
      const double mine = Get(op.x, t, c) * cosine;
      const double other = Get(op.x, t, low ? c + half : c - half) * sine;
      const double y = low ? mine - other : mine + other;
      result[0].Set(t, c, y, Bound(3, std::abs(mine) + std::abs(other), op.y.dtype, y));
    }
  }
  return result;
}

namespace {

struct Activated {
  double value;       // act(z)
  double derivative;  // act'(z)
  // What the derivative's roundings are relative to. 1 − σ and 1 − tanh² lose their leading digits,
  // so it is the terms before the subtraction that count, not the difference.
  double terms;
};

Activated Activate(Activation activation, double z) {
  if (activation == Activation::kSilu) {
    const double sigmoid = 1.0 / (1.0 + std::exp(-z));
    return {z * sigmoid, sigmoid * (1.0 + z * (1.0 - sigmoid)), 1.0 + std::abs(z)};
  }
  constexpr double kRoot = 0.7978845608028654;  // √(2/π)
  constexpr double kCubic = 0.044715;
  const double slope = kRoot * (1.0 + 3.0 * kCubic * z * z);
  const double tanh = std::tanh(kRoot * (z + kCubic * z * z * z));
  return {0.5 * z * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * z * (1.0 - tanh * tanh) * slope,
          1.0 + std::abs(z) * slope};
}

}  // namespace

Expectation Reference(const GatedActivationForward& op) {
  Expectation result = {{"out", op.out}};
  const int64_t live = LiveCount(op.live_rows, op.gate.rows);
  for (int64_t t = 0; t < live; ++t) {
    for (int64_t c = 0; c < op.gate.cols; ++c) {
      const double z = Get(op.gate, t, c), up = Get(op.up, t, c);
      const double out = Activate(op.activation, z).value * up;
      result[0].Set(t, c, out, Bound(8, std::abs(z * up), op.out.dtype, out));
    }
  }
  return result;
}

Expectation Reference(const GatedActivationBackward& op) {
  Expectation result = {{"dgate", op.dgate}, {"dup", op.dup}};
  const int64_t live = LiveCount(op.live_rows, op.gate.rows);
  for (int64_t t = 0; t < live; ++t) {
    for (int64_t c = 0; c < op.gate.cols; ++c) {
      const double z = Get(op.gate, t, c), up = Get(op.up, t, c), dout = Get(op.dout, t, c);
      const Activated act = Activate(op.activation, z);
      const double dgate = dout * up * act.derivative, dup = dout * act.value;
      result[0].Set(t, c, dgate, Bound(8, std::abs(dout * up) * act.terms, op.dgate.dtype, dgate));
      result[1].Set(t, c, dup, Bound(8, std::abs(dout * z), op.dup.dtype, dup));
    }
  }
  return result;
}

}  // namespace qlora::kernels::optest
