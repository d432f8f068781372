// What an op must leave in its outputs: a value and an error bound for each element, or that it
// stays as it was.
//
// Bounds are derived, never fitted. With u the unit roundoff of fp32, a sum of n rounded products
// in any order is good to n · u · Σ|terms| (Higham, "Accuracy and Stability of Numerical
// Algorithms", §4.2), and rounding the result to the output's type adds half an ulp of it.
// Everything a bound needs beyond that is written beside the reference.

#ifndef QLORA_TESTS_SUPPORT_EXPECTATION_H_
#define QLORA_TESTS_SUPPORT_EXPECTATION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/tensor.h"

namespace qlora::kernels::optest {

inline constexpr double kU32 = 0x1p-24;

// Largest relative error of rounding to a type. 0 for integers and fp64, the references' own
// arithmetic.
double UnitRoundoff(DType type);
// Half the spacing of a type's numbers around `magnitude`, subnormal numbers included.
double HalfUlp(DType type, double magnitude);
// |computed − value| for a sum of fp32 terms: `depth` roundings of terms that add up to `magnitude`
// in absolute value, `inherited` from operands that were themselves computed, then one rounding to
// `type`. Numbers below 2⁻¹²⁶ may be flushed to zero on the way: vdpbf16ps and vcvtneps2bf16 do so
// whatever the floating-point environment says.
double Bound(double depth, double magnitude, DType type, double value, double inherited = 0.0);

struct Expected {
  enum class Rule : uint8_t {
    kUntouched,  // byte-equal to what it was
    kWithin,     // |found − value| ≤ bound
    kBits,       // value, bit for bit: the sign of zero counts
    kAny,        // checked elsewhere, or free
  };

  // Every element untouched until it is set. `view` is the operand in the host image.
  Expected(std::string name, const Tensor& view);
  void Set(int64_t row, int64_t column, double value, double bound);
  void SetExact(int64_t row, int64_t column, double value);
  void SetAny();
  int64_t Index(int64_t row, int64_t column) const { return row * view.cols + column; }
  double Value(int64_t row, int64_t column) const { return value[Index(row, column)]; }

  std::string name;  // as Visit calls it
  Tensor view;
  std::vector<double> value, bound;
  std::vector<Rule> rule;
};

using Expectation = std::vector<Expected>;

// The first of that name; aborts where there is none.
const Expected& Find(const Expectation& expectation, const std::string& name);

// A view widened to fp64, without gaps. Rows behind `live` are left zero and are not read.
struct Matrix {
  Matrix(int64_t r, int64_t c) : rows(r), cols(c), data(r * c) {}
  explicit Matrix(const ConstTensor& t, int64_t live = -1);
  double& operator()(int64_t r, int64_t c) { return data[r * cols + c]; }
  double operator()(int64_t r, int64_t c) const { return data[r * cols + c]; }

  int64_t rows, cols;
  std::vector<double> data;
};

// Rows that hold data, of a view's `rows`.
int64_t LiveCount(const LiveRows& live_rows, int64_t rows);

}  // namespace qlora::kernels::optest

#endif  // QLORA_TESTS_SUPPORT_EXPECTATION_H_
