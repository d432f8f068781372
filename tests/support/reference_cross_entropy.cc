// Reference of the chunked linear + cross-entropy, and how far rounding may move its results.
//
// With u = 2⁻²⁴, u_h the unit roundoff of h's type, K the width and V the vocabulary:
//   z     ez = (K + 2)u · Σ|h·w|; the softcap's tanh is good to 8u of the cap and does not enlarge
//   ez. loss  the softmax-weighted mean of exp's errors, (ez + 3u(|z| + |max|)), V + 8 roundings of
//   the sum (twice, for a
//         running maximum rescales it), those of the difference, and ez of the target's logit.
//   g     = (softmax − onehot) · slope: the error of softmax, of the slope, and u_h for its
//   rounding. dh    Σ_v |w| · error of g, and V roundings; dW: Σ_i |h| · error of g, and one
//   rounding a row.
// `correct` may differ by the rows in which another logit comes within both their errors of the
// target's.

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/operand_memory.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

struct Logits {
  std::vector<double> z, error, slope, slope_error;
  double lse, lse_error, max;
};

Logits LogitsOf(const LinearCrossEntropy& op, const Matrix& h, const Matrix& w, int64_t row) {
  const int64_t vocabulary = w.rows, width = w.cols;
  Logits l{std::vector<double>(vocabulary),
           std::vector<double>(vocabulary),
           std::vector<double>(vocabulary, 1.0),
           std::vector<double>(vocabulary),
           0,
           0,
           0};
  for (int64_t v = 0; v < vocabulary; ++v) {
    double dot = 0, magnitude = 0;
    for (int64_t k = 0; k < width; ++k) {
      const double term = h(row, k) * w(v, k);
      dot += term;
      magnitude += std::abs(term);
    }
    l.z[v] = dot;
    l.error[v] = (double(width) + 2) * kU32 * magnitude;
    if (op.softcap > 0) {
      const double cap = op.softcap, ratio = std::tanh(dot / cap);
      l.z[v] = cap * ratio;
      l.slope[v] = 1 - ratio * ratio;
      l.slope_error[v] =
          2 * std::abs(ratio) * (l.error[v] / cap * l.slope[v] + 8 * kU32) + 4 * kU32;
      l.error[v] = l.error[v] * l.slope[v] + 8 * kU32 * cap;
    }
  }
  l.max = *std::max_element(l.z.begin(), l.z.end());
  double sum = 0, error = 0;
  for (int64_t v = 0; v < vocabulary; ++v) {
    const double p = std::exp(l.z[v] - l.max);
    sum += p;
    error += p * (l.error[v] + 3 * kU32 * (std::abs(l.z[v]) + std::abs(l.max)));
  }
  l.lse = l.max + std::log(sum);
  l.lse_error =
      error / sum + (2 * (double(vocabulary) + 8) + 2 * std::abs(l.lse) + std::abs(l.max)) * kU32;
  return l;
}

}  // namespace

Expectation Reference(const LinearCrossEntropy& op) {
  const int64_t live = LiveCount(op.live_rows, op.h.rows);
  const int64_t count = op.count.Scalar<int32_t>();
  const Matrix h(op.h, live), w = WeightOf(op.head, op.h.dtype);
  const int64_t vocabulary = w.rows, width = w.cols;
  const double rounding = UnitRoundoff(op.h.dtype == DType::kF32 ? DType::kF64 : op.h.dtype);

  struct Segment {
    double loss = 0, loss_error = 0;
    int64_t rows = 0, correct = 0, doubtful = 0;
  };
  std::vector<Segment> segments(op.loss.rows);
  Matrix dh(op.h.rows, width), dh_bound(op.h.rows, width);
  Matrix dhead(vocabulary, width), dhead_magnitude(vocabulary, width),
      dhead_error(vocabulary, width);
  Expectation result = {{"loss", op.loss}};
  if (op.row_loss) result.emplace_back("row_loss", op.row_loss);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = op.rows.Row<int32_t>(i)[0], target = op.targets.Row<int32_t>(i)[0];
    const Logits l = LogitsOf(op, h, w, row);
    const double row_loss = l.lse - l.z[target];
    const double row_error =
        l.lse_error + l.error[target] + 2 * kU32 * (std::abs(l.lse) + std::abs(l.z[target]));
    size_t at = 0;
    while (op.segments && i >= op.segments.Row<int32_t>(int64_t(at))[1]) ++at;
    Segment& segment = segments.at(at);
    ++segment.rows;
    segment.loss += row_loss;
    segment.loss_error += row_error;
    if (op.row_loss) {
      result[1].Set(i, 0, row_loss, row_error + HalfUlp(DType::kF32, std::abs(row_loss)));
    }
    const int64_t best = std::max_element(l.z.begin(), l.z.end()) - l.z.begin();
    segment.correct += best == target;
    bool close = false;
    for (int64_t v = 0; v < vocabulary; ++v) {
      close |= v != target && std::abs(l.z[v] - l.z[target]) <= l.error[v] + l.error[target] &&
               l.z[v] + l.error[v] >= l.max - l.error[best];
    }
    segment.doubtful += close;
    std::vector<double> magnitude(width), error(width);
    for (int64_t v = 0; v < vocabulary; ++v) {
      const double p = std::exp(l.z[v] - l.lse);
      const double p_error =
          l.error[v] + l.lse_error + (3 * (std::abs(l.z[v]) + std::abs(l.lse)) + 8) * kU32;
      const double minus = p - (v == target ? 1.0 : 0.0);
      const double g = minus * l.slope[v];
      const double g_error = (p * p_error + kU32 * std::abs(minus)) * l.slope[v] +
                             std::abs(minus) * l.slope_error[v] + (rounding + kU32) * std::abs(g);
      for (int64_t k = 0; k < width; ++k) {
        dh(row, k) += g * w(v, k);
        magnitude[k] += std::abs(g * w(v, k));
        error[k] += g_error * std::abs(w(v, k));
        dhead(v, k) += g * h(row, k);
        dhead_magnitude(v, k) += std::abs(g * h(row, k));
        dhead_error(v, k) += g_error * std::abs(h(row, k));
      }
    }
    for (int64_t k = 0; k < width; ++k) {
      dh_bound(row, k) =
          Bound(double(vocabulary) + 3, magnitude[k], op.h.dtype, dh(row, k), 1.02 * error[k]);
    }
  }
  if (op.correct) result.emplace_back("correct", op.correct);
  for (int64_t s = 0; s < op.loss.rows; ++s) {
    const Segment& segment = segments[s];
    const double loss = (op.accumulate_loss ? Get(op.loss, s, 0) : 0.0) + segment.loss;
    result[0].Set(s, 0, loss,
                  segment.loss_error + 0x1p-52 * (double(segment.rows) + 1) * std::abs(loss));
    if (!op.correct) continue;
    const double correct =
        (op.accumulate_loss ? Get(op.correct, s, 0) : 0.0) + double(segment.correct);
    result.back().Set(s, 0, correct, double(segment.doubtful));
  }
  if (op.dh) {
    // Rows that are not trained have gradient 0, bound 0.
    Expected& out = result.emplace_back("dh", op.dh);
    for (int64_t t = 0; t < live; ++t) {
      for (int64_t k = 0; k < width; ++k) out.Set(t, k, dh(t, k), dh_bound(t, k));
    }
  }
  if (op.dhead) {
    Expected& out = result.emplace_back("dhead", op.dhead);
    for (int64_t v = 0; v < vocabulary; ++v) {
      for (int64_t k = 0; k < width; ++k) {
        const double old = op.accumulate_dhead ? Get(op.dhead, v, k) : 0.0;
        const double value = old + dhead(v, k);
        out.Set(v, k, value,
                count == 0 ? 0.0
                           : Bound(double(count) + 3, dhead_magnitude(v, k) + std::abs(old),
                                   DType::kF32, value, 1.02 * dhead_error(v, k)));
      }
    }
  }
  return result;
}

}  // namespace qlora::kernels::optest
