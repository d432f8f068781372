// References of attention and of the key/value cache, and how far rounding may move their results.
//
// With u = 2⁻²⁴, u_q the unit roundoff of q's type, S the head size and n the visible keys of a
// query:
//   z      S products: ez = scale · (S + 3)u · Σ|q·k|; the softcap's tanh is good to 8u of the cap
//   and does not enlarge ez. exp    takes an argument z − m of which each part is rounded: relative
//   error ez + 3u(|z| + |m|) + 8u. lse    the weighted mean of its terms' errors, n + 8 roundings
//   of the sum, and of the result itself. p      error of exp, of lse, and u_q where p is rounded
//   for the second product. o      Σ p|v| · error of p, and n + 10 roundings. A running maximum
//   rescales: one more rounding a tile, n at most. dz     p · (do·v − D) · slope, with the error of
//   p, those of the two sums of S products, and of the slope
//          1 − (z/cap)², which are ez · 2|z|/cap² and the tanh's; then u_q.
//   dq, dk, dv: the errors of dz or p weighted with the other factor, and one rounding for each
//   term of the sum.
// First order; the factor 1.02 covers the products of errors, which are below 1 % even where u_q =
// 2⁻⁸.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/support/operand_memory.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

constexpr double kSecondOrder = 1.02;

struct Document {
  int64_t first_query, queries, first_key, keys;
};

std::vector<Document> DocumentsOf(const ConstTensor& documents, const ConstTensor& count) {
  std::vector<Document> result;
  for (int32_t d = 0; d < count.Scalar<int32_t>(); ++d) {
    const int32_t* row = documents.Row<int32_t>(d);
    result.push_back({row[0], row[1], row[2], row[3]});
  }
  return result;
}

// Scores of one query row and head over its visible keys [begin, end), rows of k.
struct Scores {
  int64_t begin, end;
  std::vector<double> z, error, slope, slope_error;
};

Scores ScoresOf(const Matrix& q, const Matrix& k, const AttentionShape& shape, const Document& doc,
                int64_t i, int64_t head) {
  const int64_t size = shape.head_size, kv = head / (shape.query_heads / shape.kv_heads);
  const int64_t position = i + doc.keys - doc.queries;
  const int64_t first = shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0;
  Scores s{doc.first_key + first, doc.first_key + position + 1, {}, {}, {}, {}};
  for (int64_t j = s.begin; j < s.end; ++j) {
    double dot = 0, magnitude = 0;
    for (int64_t c = 0; c < size; ++c) {
      const double term = q(doc.first_query + i, head * size + c) * k(j, kv * size + c);
      dot += term;
      magnitude += std::abs(term);
    }
    double z = double(shape.scale) * dot, slope = 1, slope_error = 0;
    double error = std::abs(double(shape.scale)) * (double(size) + 3) * kU32 * magnitude;
    if (shape.softcap > 0) {
      const double cap = shape.softcap, ratio = std::tanh(z / cap);
      z = cap * ratio;
      slope = 1 - ratio * ratio;
      slope_error = 2 * std::abs(ratio) * (error / cap * slope + 8 * kU32) + 4 * kU32;
      error = error * slope + 8 * kU32 * cap;
    }
    s.z.push_back(z);
    s.error.push_back(error);
    s.slope.push_back(slope);
    s.slope_error.push_back(slope_error);
  }
  return s;
}

struct LogSumExp {
  double value, error, max;
};

LogSumExp LogSumExpOf(const Scores& s) {
  const double max = *std::max_element(s.z.begin(), s.z.end());
  double sum = 0, error = 0;
  for (size_t j = 0; j < s.z.size(); ++j) {
    const double p = std::exp(s.z[j] - max);
    sum += p;
    error += p * (s.error[j] + 3 * kU32 * (std::abs(s.z[j]) + std::abs(max)));
  }
  const double value = max + std::log(sum), terms = double(s.z.size()) + 8;
  return {value, error / sum + (2 * terms + 2 * std::abs(value) + std::abs(max)) * kU32, max};
}

}  // namespace

Expectation Reference(const AttentionForward& op) {
  const AttentionShape& shape = op.shape;
  const int64_t size = shape.head_size,
                group = shape.query_heads / std::max<int64_t>(1, shape.kv_heads);
  const Matrix q(op.q), k(op.k), v(op.v);
  const double rounding = UnitRoundoff(op.q.dtype == DType::kF32 ? DType::kF64 : op.q.dtype);
  Expectation result = {{"o", op.o}, {"lse", op.lse}};
  for (const Document& doc : DocumentsOf(op.documents, op.document_count)) {
    for (int64_t i = 0; i < doc.queries; ++i) {
      for (int64_t head = 0; head < shape.query_heads; ++head) {
        const Scores s = ScoresOf(q, k, shape, doc, i, head);
        const LogSumExp lse = LogSumExpOf(s);
        const int64_t row = doc.first_query + i;
        result[1].Set(row, head, lse.value, lse.error + HalfUlp(DType::kF32, std::abs(lse.value)));
        for (int64_t c = 0; c < size; ++c) {
          double o = 0, magnitude = 0, error = 0;
          for (int64_t j = s.begin; j < s.end; ++j) {
            const double z = s.z[j - s.begin], p = std::exp(z - lse.value);
            const double term = p * v(j, head / group * size + c);
            o += term;
            magnitude += std::abs(term);
            error += std::abs(term) * (s.error[j - s.begin] + lse.error + rounding +
                                       3 * kU32 * (std::abs(z) + std::abs(lse.max)));
          }
          result[0].Set(row, head * size + c, o,
                        Bound(2 * double(s.end - s.begin) + 12, magnitude, op.o.dtype, o,
                              kSecondOrder * error));
        }
      }
    }
  }
  return result;
}

Expectation Reference(const AttentionBackward& op) {
  const AttentionShape& shape = op.shape;
  const int64_t size = shape.head_size,
                group = shape.query_heads / std::max<int64_t>(1, shape.kv_heads);
  const Matrix q(op.q), k(op.k), v(op.v), o(op.o), dout(op.dout), lse(op.lse);
  const double rounding = UnitRoundoff(op.q.dtype == DType::kF32 ? DType::kF64 : op.q.dtype);
  const double scale = shape.scale;
  Matrix dk(k.rows, k.cols), dk_magnitude(k.rows, k.cols), dk_error(k.rows, k.cols);
  Matrix dv(v.rows, v.cols), dv_magnitude(v.rows, v.cols), dv_error(v.rows, v.cols);
  Expectation result = {{"dq", op.dq}, {"dk", op.dk}, {"dv", op.dv}};
  for (const Document& doc : DocumentsOf(op.documents, op.document_count)) {
    for (int64_t i = 0; i < doc.queries; ++i) {
      const int64_t row = doc.first_query + i;
      for (int64_t head = 0; head < shape.query_heads; ++head) {
        const int64_t mine = head * size, kv = head / group * size;
        const Scores s = ScoresOf(q, k, shape, doc, i, head);
        double d = 0, d_magnitude = 0;
        for (int64_t c = 0; c < size; ++c) {
          d += dout(row, mine + c) * o(row, mine + c);
          d_magnitude += std::abs(dout(row, mine + c) * o(row, mine + c));
        }
        std::vector<double> dq(size), dq_magnitude(size), dq_error(size);
        for (int64_t j = s.begin; j < s.end; ++j) {
          const int64_t at = j - s.begin;
          const double z = s.z[at], p = std::exp(z - lse(row, head));
          const double p_error =
              s.error[at] + (3 * (std::abs(z) + std::abs(lse(row, head))) + 8) * kU32;
          double dp = 0, dp_magnitude = 0;
          for (int64_t c = 0; c < size; ++c) {
            dp += dout(row, mine + c) * v(j, kv + c);
            dp_magnitude += std::abs(dout(row, mine + c) * v(j, kv + c));
          }
          const double dz = p * (dp - d) * s.slope[at];
          const double dp_error =
              (double(size) + 3) * kU32 * (dp_magnitude + d_magnitude) + kU32 * std::abs(dp - d);
          const double dz_error = std::abs(dz) * (p_error + 4 * kU32 + rounding) +
                                  p * s.slope[at] * dp_error +
                                  p * std::abs(dp - d) * s.slope_error[at];
          for (int64_t c = 0; c < size; ++c) {
            const double to_q = scale * dz * k(j, kv + c);
            dq[c] += to_q;
            dq_magnitude[c] += std::abs(to_q);
            dq_error[c] += std::abs(scale * k(j, kv + c)) * dz_error;
            const double to_k = scale * dz * q(row, mine + c);
            dk(j, kv + c) += to_k;
            dk_magnitude(j, kv + c) += std::abs(to_k);
            dk_error(j, kv + c) += std::abs(scale * q(row, mine + c)) * dz_error;
            const double to_v = p * dout(row, mine + c);
            dv(j, kv + c) += to_v;
            dv_magnitude(j, kv + c) += std::abs(to_v);
            dv_error(j, kv + c) += std::abs(to_v) * (p_error + rounding);
          }
        }
        for (int64_t c = 0; c < size; ++c) {
          result[0].Set(row, mine + c, dq[c],
                        Bound(double(s.end - s.begin) + 4, dq_magnitude[c], op.dq.dtype, dq[c],
                              kSecondOrder * dq_error[c]));
        }
      }
    }
    for (int64_t j = doc.first_key; j < doc.first_key + doc.keys; ++j) {
      for (int64_t c = 0; c < k.cols; ++c) {
        const double depth = double(doc.queries * group) + 4;
        result[1].Set(
            j, c, dk(j, c),
            Bound(depth, dk_magnitude(j, c), op.dk.dtype, dk(j, c), kSecondOrder * dk_error(j, c)));
        result[2].Set(
            j, c, dv(j, c),
            Bound(depth, dv_magnitude(j, c), op.dv.dtype, dv(j, c), kSecondOrder * dv_error(j, c)));
      }
    }
  }
  return result;
}

Expectation Reference(const KvAppend& op) {
  Expectation result = {{"cache", op.cache}};
  for (const Document& doc : DocumentsOf(op.documents, op.document_count)) {
    for (int64_t i = 0; i < doc.queries; ++i) {
      for (int64_t c = 0; c < op.x.cols; ++c) {
        result[0].SetExact(doc.first_key + doc.keys - doc.queries + i, c,
                           Get(op.x, doc.first_query + i, c));
      }
    }
  }
  return result;
}

}  // namespace qlora::kernels::optest
