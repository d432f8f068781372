#include "tests/support/expectation.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "tests/support/operand_memory.h"

namespace qlora::kernels::optest {
namespace {

// Significant bits and the exponent of the smallest subnormal number of a type; 0 bits for exact
// types.
struct Format {
  int precision;
  int lowest;
};

Format FormatOf(DType type) {
  switch (type) {
    case DType::kF32:
      return {24, -149};
    case DType::kBf16:
      return {8, -133};
    case DType::kF16:
      return {11, -24};
    default:
      return {0, 0};
  }
}

}  // namespace

double UnitRoundoff(DType type) {
  const Format format = FormatOf(type);
  return format.precision == 0 ? 0.0 : std::ldexp(1.0, -format.precision);
}

double HalfUlp(DType type, double magnitude) {
  const Format format = FormatOf(type);
  if (format.precision == 0) return 0.0;
  const int exponent = magnitude > 0 ? std::ilogb(magnitude) : format.lowest;
  return std::ldexp(0.5, std::max(exponent - format.precision + 1, format.lowest));
}

double Bound(double depth, double magnitude, DType type, double value, double inherited) {
  constexpr double kFlushed = 0x1p-126;
  const double error = depth * kU32 / (1 - depth * kU32) * magnitude + inherited;
  return error + HalfUlp(type, std::abs(value) + error) + kFlushed;
}

Expected::Expected(std::string n, const Tensor& v)
    : name(std::move(n)),
      view(v),
      value(v.Count()),
      bound(v.Count()),
      rule(v.Count(), Rule::kUntouched) {}

void Expected::Set(int64_t row, int64_t column, double v, double b) {
  const int64_t i = Index(row, column);
  value[i] = v;
  bound[i] = b;
  rule[i] = Rule::kWithin;
}

void Expected::SetExact(int64_t row, int64_t column, double v) {
  Set(row, column, v, 0.0);
  rule[Index(row, column)] = Rule::kBits;
}

void Expected::SetAny() { std::fill(rule.begin(), rule.end(), Rule::kAny); }

const Expected& Find(const Expectation& expectation, const std::string& name) {
  for (const Expected& e : expectation) {
    if (e.name == name) return e;
  }
  std::fprintf(stderr, "no expectation of '%s'\n", name.c_str());
  std::abort();
}

Matrix::Matrix(const ConstTensor& t, int64_t live) : Matrix(t.rows, t.cols) {
  const int64_t end = live < 0 ? t.rows : live;
  for (int64_t r = 0; r < end; ++r) {
    for (int64_t c = 0; c < t.cols; ++c) (*this)(r, c) = Get(t, r, c);
  }
}

int64_t LiveCount(const LiveRows& live_rows, int64_t rows) {
  return live_rows ? std::min<int64_t>(live_rows.Scalar<int32_t>(), rows) : rows;
}

}  // namespace qlora::kernels::optest
