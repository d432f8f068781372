// References of the linear ops.
//
// Two roundings beside those of `Bound`: `low` and `up` are rounded to the compute type (half an
// ulp each, inherited by what is made of them), and with dropout a kept x/keep may enter its
// product rounded to the compute type.

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/philox.h"
#include "quant/reference_quantizer.h"
#include "tests/support/operand_memory.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

struct Range {
  int64_t begin, end;
};

Range SegmentRows(const ConstTensor& rows, int64_t live) {
  if (!rows) return {0, live};
  return {std::min<int64_t>(rows.Row<int32_t>(0)[0], live),
          std::min<int64_t>(rows.Row<int32_t>(0)[1], live)};
}

// What element (t, k) of a segment's [T, K] rows is multiplied by: 0 or 1/keep.
double DropoutFactor(const Dropout& dropout, int64_t t, int64_t k, int64_t columns) {
  if (dropout.probability == 0.0f) return 1.0;
  const uint64_t element = uint64_t(t) * columns + k;
  const uint32_t bits =
      DropoutBits(dropout.counter.Row<int32_t>(0), dropout.key, element / 4)[element % 4];
  if (bits < DropoutThreshold(dropout.probability)) return 0.0;
  return 1.0 / (1.0 - double(dropout.probability));
}

// D∘x over a range of rows; zero elsewhere.
Matrix Dropped(const Matrix& x, const Dropout& dropout, Range rows) {
  Matrix y(x.rows, x.cols);
  for (int64_t t = rows.begin; t < rows.end; ++t) {
    for (int64_t k = 0; k < x.cols; ++k) {
      y(t, k) = x(t, k) * DropoutFactor(dropout, t - rows.begin, k, x.cols);
    }
  }
  return y;
}

double OperandRounding(const Dropout& dropout, DType compute) {
  return dropout.probability == 0.0f ? 0.0 : UnitRoundoff(compute);
}

// up = scale · dy · B, set in `expected`.
Computed UpOf(const Matrix& dy, const AdapterSegment& s, Range rows, DType compute, Expected& out) {
  const Matrix b(s.b);
  Computed up(dy.rows, b.cols);
  for (int64_t t = rows.begin; t < rows.end; ++t) {
    for (int64_t r = 0; r < b.cols; ++r) {
      double sum = 0, magnitude = 0;
      for (int64_t n = 0; n < dy.cols; ++n) {
        const double term = double(s.scale) * dy(t, n) * b(n, r);
        sum += term;
        magnitude += std::abs(term);
      }
      up.value(t, r) = sum;
      up.error(t, r) = Bound(double(dy.cols) + 3, magnitude, compute, sum);
      out.Set(t, r, sum, up.error(t, r));
    }
  }
  return up;
}

}  // namespace

Computed ExpectFirstProduct(const Computed& x, const FirstProduct& product, int64_t live,
                            DType compute, Expectation& expectation) {
  const Range rows = SegmentRows(product.rows, live);
  const Matrix value = Dropped(x.value, product.dropout, rows);
  const Matrix error = Dropped(x.error, product.dropout, rows);
  const Matrix a(product.a);
  Computed low(value.rows, a.rows);
  Expected& out = expectation.emplace_back("low", product.low);
  for (int64_t t = rows.begin; t < rows.end; ++t) {
    for (int64_t r = 0; r < a.rows; ++r) {
      double sum = 0, magnitude = 0, inherited = 0;
      for (int64_t k = 0; k < value.cols; ++k) {
        const double term = value(t, k) * a(r, k);
        sum += term;
        magnitude += std::abs(term);
        inherited += error(t, k) * std::abs(a(r, k));
      }
      low.value(t, r) = sum;
      low.error(t, r) = Bound(double(value.cols) + 3, magnitude, compute, sum,
                              inherited + OperandRounding(product.dropout, compute) * magnitude);
      out.Set(t, r, sum, low.error(t, r));
    }
  }
  return low;
}

Matrix WeightOf(const LinearBase& base, DType compute) {
  Matrix w(base.out_features, base.in_features);
  if (base.kind == LinearBase::Kind::kDense) w = Matrix(base.dense);
  if (base.kind == LinearBase::Kind::kQuantized && !w.data.empty()) {
    const QuantizedTensor& q = base.quantized;
    quant::ConstQuantizedView view{.spec = q.spec, .codes = q.codes.Row<uint8_t>(0)};
    if (q.spec.double_quant) {
      view.absmax_u8 = q.absmax.Row<uint8_t>(0);
      view.nested_absmax = q.nested_absmax.Row<float>(0);
      view.nested_offset = q.offset.Row<float>(0);
      view.nested_map = q.map.Row<float>(0);
    } else {
      view.absmax_f32 = q.absmax.Row<float>(0);
    }
    std::vector<float> decoded(w.data.size());
    quant::DequantizeReference(view, int64_t(decoded.size()), decoded.data());
    w.data.assign(decoded.begin(), decoded.end());
  }
  if (compute == DType::kBf16) {
    for (double& v : w.data) v = quant::F32FromBf16(quant::Bf16FromF32(float(v)));
  }
  return w;
}

Expectation Reference(const LinearForward& op) {
  const int64_t live = LiveCount(op.live_rows, op.x.rows);
  const DType compute = op.x.dtype;
  const Matrix x(op.x, live), w = WeightOf(op.base, compute);
  const int64_t in = op.x.cols, out = op.y.cols;
  const bool has_base = op.base.kind != LinearBase::Kind::kNone;

  Matrix sum(op.y.rows, out), magnitude(op.y.rows, out), inherited(op.y.rows, out);
  double depth = 1;
  if (has_base) {
    depth += double(in);
    for (int64_t t = 0; t < live; ++t) {
      for (int64_t n = 0; n < out; ++n) {
        const double* xt = &x.data[t * in];
        const double* wn = &w.data[n * in];
        double s = 0, m = 0;
        for (int64_t k = 0; k < in; ++k) {
          s += xt[k] * wn[k];
          m += std::abs(xt[k] * wn[k]);
        }
        sum(t, n) = s;
        magnitude(t, n) = m;
      }
    }
  }
  if (op.bias) {
    const Matrix bias(op.bias);
    depth += 1;
    for (int64_t t = 0; t < live; ++t) {
      for (int64_t n = 0; n < out; ++n) {
        sum(t, n) += bias(0, n);
        magnitude(t, n) += std::abs(bias(0, n));
      }
    }
  }
  Expectation result;
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& s = op.adapters[i];
    const Range rows = SegmentRows(s.rows, live);
    const Matrix b(s.b);
    const Computed low = s.IsLowGiven() ? Computed(Matrix(s.given_low, rows.end))
                                        : ExpectFirstProduct(Computed(x), FirstProductOf(op, i),
                                                             live, compute, result);
    depth += double(s.a.rows) + 3;
    for (int64_t t = rows.begin; t < rows.end; ++t) {
      for (int64_t n = 0; n < out; ++n) {
        for (int64_t r = 0; r < b.cols; ++r) {
          const double term = double(s.scale) * low.value(t, r) * b(n, r);
          sum(t, n) += term;
          magnitude(t, n) += std::abs(term);
          inherited(t, n) += std::abs(s.scale * b(n, r)) * low.error(t, r);
        }
      }
    }
  }
  if (op.tail) result.emplace_back("tail", op.tail).SetAny();
  Expected& y = result.emplace_back("y", op.y);
  for (int64_t t = 0; t < live; ++t) {
    for (int64_t n = 0; n < out; ++n) {
      y.Set(t, n, sum(t, n), Bound(depth, magnitude(t, n), op.y.dtype, sum(t, n), inherited(t, n)));
    }
  }
  return result;
}

Expectation Reference(const LinearBackwardInput& op) {
  const int64_t live = LiveCount(op.live_rows, op.dy.rows);
  const DType compute = op.dy.dtype;
  const Matrix dy(op.dy, live);
  const int64_t out = op.dy.cols, in = op.base.in_features;

  Expectation result;
  Matrix sum(op.dy.rows, in), magnitude(op.dy.rows, in), inherited(op.dy.rows, in);
  double depth = 1;
  if (op.dx && op.base.kind != LinearBase::Kind::kNone) {
    const Matrix w = WeightOf(op.base, compute);
    depth += double(out);
    for (int64_t t = 0; t < live; ++t) {
      for (int64_t n = 0; n < out; ++n) {
        const double d = dy(t, n);
        for (int64_t k = 0; k < in; ++k) {
          sum(t, k) += d * w(n, k);
          magnitude(t, k) += std::abs(d * w(n, k));
        }
      }
    }
  }
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& s = op.adapters[i];
    const Range rows = SegmentRows(s.rows, live);
    result.emplace_back("up", op.up[i]);
    const Computed up = UpOf(dy, s, rows, compute, result.back());
    if (!op.dx) continue;
    const Matrix a(s.a);
    depth += double(a.rows) + 3;
    for (int64_t t = rows.begin; t < rows.end; ++t) {
      for (int64_t k = 0; k < in; ++k) {
        const double factor = DropoutFactor(s.dropout, t - rows.begin, k, in);
        for (int64_t r = 0; r < a.rows; ++r) {
          const double term = factor * up.value(t, r) * a(r, k);
          sum(t, k) += term;
          magnitude(t, k) += std::abs(term);
          inherited(t, k) += factor * std::abs(a(r, k)) * up.error(t, r);
        }
      }
    }
  }
  if (op.tail) result.emplace_back("tail", op.tail).SetAny();
  if (!op.dx) return result;
  Expected& dx = result.emplace_back("dx", op.dx);
  for (int64_t t = 0; t < live; ++t) {
    for (int64_t k = 0; k < in; ++k) {
      const double old = op.accumulate ? Get(op.dx, t, k) : 0.0;
      dx.Set(t, k, old + sum(t, k),
             Bound(depth + 1, magnitude(t, k) + std::abs(old), op.dx.dtype, old + sum(t, k),
                   inherited(t, k)));
    }
  }
  return result;
}

namespace {

// out (+)= factor · leftᵀ · right over a range of rows, in fp32; `rounding` of each term's
// operands.
void TransposedProduct(const Matrix& left, const Matrix& right, Range rows, double factor,
                       double rounding, bool accumulate, Expected& out) {
  const double depth = double(std::max<int64_t>(rows.end - rows.begin, 0)) + 4;
  for (int64_t i = 0; i < left.cols; ++i) {
    for (int64_t j = 0; j < right.cols; ++j) {
      const double old = accumulate ? Get(out.view, i, j) : 0.0;
      double sum = 0, magnitude = 0;
      for (int64_t t = rows.begin; t < rows.end; ++t) {
        const double term = factor * left(t, i) * right(t, j);
        sum += term;
        magnitude += std::abs(term);
      }
      if (rows.begin >= rows.end) {
        // Untouched where it is added to; a zero of either sign where it is set.
        if (accumulate) out.SetExact(i, j, old);
        if (!accumulate) out.Set(i, j, 0.0, 0.0);
        continue;
      }
      out.Set(
          i, j, old + sum,
          Bound(depth, magnitude + std::abs(old), out.view.dtype, old + sum, rounding * magnitude));
    }
  }
}

}  // namespace

Expectation Reference(const LinearBackwardAdapter& op) {
  const int64_t live = LiveCount(op.live_rows, op.x.rows);
  const Range rows = SegmentRows(op.rows, live);
  const Matrix x = Dropped(Matrix(op.x, live), op.dropout, rows);
  Expectation result = {{"da", op.da}, {"db", op.db}};
  TransposedProduct(Matrix(op.up, live), x, rows, 1.0, OperandRounding(op.dropout, op.x.dtype),
                    op.accumulate, result[0]);
  TransposedProduct(Matrix(op.dy, live), Matrix(op.low, live), rows, op.scale, 0.0, op.accumulate,
                    result[1]);
  return result;
}

Expectation Reference(const LinearBackwardWeight& op) {
  const int64_t live = LiveCount(op.live_rows, op.x.rows);
  const Range rows{0, live};
  const Matrix dy(op.dy, live);
  Expectation result = {{"dweight", op.dweight}};
  TransposedProduct(dy, Matrix(op.x, live), rows, 1.0, 0.0, op.accumulate, result[0]);
  if (op.dbias) {
    Matrix one(dy.rows, 1);
    std::fill(one.data.begin(), one.data.end(), 1.0);
    result.emplace_back("dbias", op.dbias);
    TransposedProduct(one, dy, rows, 1.0, 0.0, op.accumulate, result[1]);
  }
  return result;
}

}  // namespace qlora::kernels::optest
