// References of the update (AdamW, reductions, gradient scale) and of the 4-bit formats.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "quant/dynamic_map.h"
#include "quant/reference_quantizer.h"
#include "tests/support/operand_memory.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

ParameterSegment SegmentOf(const AdamW& op, int64_t block) {
  ParameterSegment found{};
  for (int64_t s = 0; s < op.segments.rows; ++s) {
    ParameterSegment segment;
    std::memcpy(&segment, op.segments.Row<uint8_t>(s), sizeof segment);
    if (segment.first_block <= block) found = segment;
  }
  return found;
}

// Element i of a range whose windows are a view's rows.
double GetAt(const ConstTensor& t, int64_t i) { return Get(t, i / t.cols, i % t.cols); }
void SetAt(Expected* e, int64_t i, double value, double bound) {
  e->Set(i / e->view.cols, i % e->view.cols, value, bound);
}

// Distance from x to the nearest of a map's values.
double NearestDistance(const std::array<float, quant::kDynamicMapSize>& map, double x) {
  double best = std::numeric_limits<double>::infinity();
  for (float value : map) best = std::min(best, std::abs(double(value) - x));
  return best;
}

}  // namespace

// u per operation in fp32. The moments' errors reach the parameter through the quotient m / (√v/√c₂
// + ε), whose denominator carries half of v's relative error: every term of v is positive.
Expectation Reference(const AdamW& op) {
  Expectation result = {{"parameter", op.parameter}, {"m", op.m}, {"v", op.v}};
  const bool coded = op.m.dtype == DType::kU8;
  if (coded) {
    result.emplace_back("m_absmax", op.m_absmax);
    result.emplace_back("v_absmax", op.v_absmax);
  }
  const size_t compute_at = result.size();
  if (op.compute) result.emplace_back("compute", op.compute);
  if (op.skip.Scalar<int32_t>() != 0) return result;

  const double beta1 = op.beta1, beta2 = op.beta2;
  const int64_t n = op.gradient.cols, blocks = (n + kParameterBlock - 1) / kParameterBlock;
  for (int64_t block = 0; block < blocks; ++block) {
    const ParameterSegment segment = SegmentOf(op, op.first_block + block);
    const double lr = Get(op.scalars, segment.adapter, UpdateScalars::kLearningRate) *
                      double(segment.rate_factor);
    const double c1 = Get(op.scalars, segment.adapter, UpdateScalars::kBiasCorrection1);
    const double c2 = Get(op.scalars, segment.adapter, UpdateScalars::kBiasCorrection2);
    const double gradient_scale = Get(op.gradient_scale, segment.adapter, 0);
    double m_absmax = 0, v_absmax = 0, m_error_max = 0;
    const int64_t begin = block * kParameterBlock, end = std::min(n, begin + kParameterBlock);
    for (int64_t i = begin; i < end; ++i) {
      const double g = Get(op.gradient, 0, i) * gradient_scale;
      double old_m = GetAt(op.m, i), old_v = GetAt(op.v, i);
      if (coded) {
        old_m = double(quant::SignedDynamicMap()[int(old_m)]) * GetAt(op.m_absmax, block);
        old_v = double(quant::UnsignedDynamicMap()[int(old_v)]) * GetAt(op.v_absmax, block);
      }
      const double m = beta1 * old_m + (1 - beta1) * g;
      const double m_error = 5 * kU32 * (std::abs(beta1 * old_m) + std::abs((1 - beta1) * g));
      const double v = beta2 * old_v + (1 - beta2) * g * g;
      const double v_relative = 7 * kU32;
      const double denominator = std::sqrt(v) / std::sqrt(c2) + double(op.epsilon);
      const double step = lr / c1 * m / denominator;
      const double step_error =
          std::abs(lr / c1 / denominator) * m_error + std::abs(step) * (v_relative / 2 + 8 * kU32);
      const double decayed = GetAt(op.parameter, i) * (1 - lr * double(segment.weight_decay));
      const double p = decayed - step;
      const double p_error = 4 * kU32 * std::abs(decayed) + step_error;
      const double p_bound = Bound(1, std::abs(decayed) + std::abs(step), DType::kF32, p, p_error);
      SetAt(&result[0], i, p, p_bound);
      if (op.compute) {
        result[compute_at].Set(0, i, p, p_bound + HalfUlp(op.compute.dtype, std::abs(p) + p_bound));
      }
      if (coded) {
        m_absmax = std::max(m_absmax, std::abs(m));
        m_error_max = std::max(m_error_max, m_error);
        v_absmax = std::max(v_absmax, v);
      } else {
        SetAt(&result[1], i, m, Bound(0, 0, DType::kF32, m, m_error));
        SetAt(&result[2], i, v, Bound(0, 0, DType::kF32, v, v_relative * v));
      }
    }
    if (coded) {
      SetAt(&result[3], block, m_absmax, Bound(0, 0, DType::kF32, m_absmax, m_error_max));
      SetAt(&result[4], block, v_absmax, Bound(0, 0, DType::kF32, v_absmax, 7 * kU32 * v_absmax));
    }
  }
  // What a code stands for is checked by CheckCodedStates: beside a tie either neighbour is right.
  for (int64_t i = 0; coded && i < n; ++i) {
    for (const int state : {1, 2}) {
      SetAt(&result[state], i, 0.0, std::numeric_limits<double>::infinity());
    }
  }
  return result;
}

std::string CheckCodedStates(const AdamW& before, const AdamW& after) {
  if (before.m.dtype != DType::kU8 || before.skip.Scalar<int32_t>() != 0) return "";
  const double beta1 = before.beta1, beta2 = before.beta2;
  for (int64_t i = 0; i < before.gradient.cols; ++i) {
    const int64_t block = i / kParameterBlock;
    const ParameterSegment segment = SegmentOf(before, before.first_block + block);
    const double g = Get(before.gradient, 0, i) * Get(before.gradient_scale, segment.adapter, 0);
    const auto check = [&](const char* name, const auto& map, const ConstTensor& old_codes,
                           const ConstTensor& old_absmax, const ConstTensor& codes,
                           const ConstTensor& absmax, double beta, double added) -> std::string {
      const double old = double(map[int(GetAt(old_codes, i))]) * GetAt(old_absmax, block);
      const double exact = beta * old + (1 - beta) * added;
      const double scale = GetAt(absmax, block);
      const double decoded = double(map[int(GetAt(codes, i))]) * scale;
      const double nearest = scale > 0 ? NearestDistance(map, exact / scale) * scale : 0.0;
      // The update's roundings and those of the scaled value that is encoded move a tie by a few u
      // of the scale.
      const double allowed = nearest + 16 * kU32 * scale;
      if (std::abs(decoded - exact) <= allowed) return "";
      return std::string(name) + " (column " + std::to_string(i) + "): decodes to " +
             std::to_string(decoded) + ", exact " + std::to_string(exact) + ", absmax " +
             std::to_string(scale);
    };
    std::string wrong = check("m", quant::SignedDynamicMap(), before.m, before.m_absmax, after.m,
                              after.m_absmax, beta1, g);
    if (wrong.empty()) {
      wrong = check("v", quant::UnsignedDynamicMap(), before.v, before.v_absmax, after.v,
                    after.v_absmax, beta2, g * g);
    }
    if (!wrong.empty()) return wrong;
  }
  return "";
}

// A square of an fp32 number is exact in fp64; what is left are the roundings of the sum. That its
// order is the same on every instruction set is checked by reduce_test.cc.
Expectation Reference(const NormAndFinite& op) {
  double total = 0;
  int64_t nonfinite = 0;
  for (int64_t begin = 0; begin < op.x.cols; begin += kReduceChunk) {
    double sum = 0;
    for (int64_t i = begin; i < std::min(op.x.cols, begin + kReduceChunk); ++i) {
      const double x = Get(op.x, 0, i);
      if (std::isfinite(x)) {
        sum += x * x;
      } else {
        ++nonfinite;
      }
    }
    total += sum;
  }
  Expectation result = {{"sum_of_squares", op.sum_of_squares}, {"nonfinite", op.nonfinite}};
  result[0].Set(0, 0, total, double(op.x.cols) * 0x1p-53 * total);
  result[1].SetExact(0, 0, double(nonfinite));
  return result;
}

// The header promises properties, not a number: see reduce_test.cc.
Expectation Reference(const ContentHash& op) {
  Expectation result = {{"hash", op.hash}};
  result[0].SetAny();
  return result;
}

Expectation Reference(const AddGradient& op) {
  Expectation result = {{"into", op.into}};
  for (int64_t i = 0; i < op.into.cols; ++i) {
    result[0].SetExact(0, i,
                       op.into.dtype == DType::kF64
                           ? op.into.Row<double>(0)[i] + op.from.Row<double>(0)[i]
                           : op.into.Row<float>(0)[i] + op.from.Row<float>(0)[i]);
  }
  return result;
}

Expectation Reference(const Zero& op) {
  Expectation result = {{"x", op.x}};
  for (int64_t r = 0; r < op.x.rows; ++r) {
    for (int64_t c = 0; c < op.x.cols; ++c) result[0].SetExact(r, c, 0.0);
  }
  return result;
}

Expectation Reference(const GradientScale& op) {
  const double inverse = op.inverse_tokens.Scalar<float>();
  const double norm = std::sqrt(op.sum_of_squares.Scalar<double>()) * inverse;
  const double clip = op.max_norm > 0 ? std::min(1.0, double(op.max_norm) / (norm + 1e-6)) : 1.0;
  const bool skip = op.nonfinite.Scalar<int32_t>() != 0 || !std::isfinite(norm) ||
                    !std::isfinite(op.loss.Scalar<double>());
  Expectation result = {{"gradient_norm", op.gradient_norm},
                        {"gradient_scale", op.gradient_scale},
                        {"skip", op.skip}};
  result[2].SetExact(0, 0, skip ? 1 : 0);
  if (skip) {
    result[0].SetAny();  // of a step that is not taken
    result[1].SetAny();
  } else {
    result[0].Set(0, 0, norm, Bound(4, norm, DType::kF32, norm));
    result[1].Set(0, 0, inverse * clip, Bound(8, inverse * clip, DType::kF32, inverse * clip));
  }
  return result;
}

Expectation Reference(const Quantize& op) {
  const int64_t n = op.w.Count();
  std::vector<float> w(n);
  int64_t nonfinite = 0;
  for (int64_t i = 0; i < n; ++i) {
    w[i] = float(Get(op.w, i / op.w.cols, i % op.w.cols));
    nonfinite += !std::isfinite(w[i]);
  }
  Expectation result = {
      {"nonfinite", op.nonfinite}, {"codes", op.out.codes}, {"absmax", op.out.absmax}};
  if (op.spec.double_quant) {
    result.emplace_back("nested_absmax", op.out.nested_absmax);
    result.emplace_back("offset", op.out.offset);
  }
  result[0].SetExact(0, 0, double(nonfinite));
  if (nonfinite > 0) {
    for (size_t i = 1; i < result.size(); ++i) result[i].SetAny();
    return result;
  }
  std::vector<uint8_t> codes(op.spec.CodeBytes(n)), absmax_u8(op.spec.BlockCount(n));
  std::vector<float> absmax(op.spec.BlockCount(n)), nested(op.spec.GroupCount(n));
  float offset = 0;
  quant::QuantizedView view{.codes = codes.data()};
  if (op.spec.double_quant) {
    view.absmax_u8 = absmax_u8.data();
    view.nested_absmax = nested.data();
    view.nested_offset = &offset;
  } else {
    view.absmax_f32 = absmax.data();
  }
  if (n > 0 && !quant::QuantizeReference(w.data(), n, op.spec, view).ok()) std::abort();
  for (size_t i = 0; i < codes.size(); ++i) result[1].SetExact(0, i, codes[i]);
  for (size_t i = 0; i < absmax.size(); ++i) {
    result[2].SetExact(0, i, op.spec.double_quant ? absmax_u8[i] : absmax[i]);
  }
  for (size_t i = 0; i < nested.size(); ++i) result[3].SetExact(0, i, nested[i]);
  if (op.spec.double_quant) result[4].SetExact(0, 0, offset);
  return result;
}

Expectation Reference(const Dequantize& op) {
  LinearBase base;
  base.kind = LinearBase::Kind::kQuantized;
  base.out_features = op.w.rows;
  base.in_features = op.w.cols;
  base.quantized = op.q;
  const Matrix w = WeightOf(base, op.w.dtype);  // rounds to bf16 itself
  Expectation result = {{"w", op.w}};
  for (int64_t r = 0; r < w.rows; ++r) {
    for (int64_t c = 0; c < w.cols; ++c) {
      double value = w(r, c);
      if (op.w.dtype == DType::kF16) value = quant::F32FromF16(quant::F16FromF32(float(value)));
      result[0].SetExact(r, c, value);
    }
  }
  return result;
}

namespace {

// The packing is the backend's own and need not be bitsandbytes'; here it is compared with that of
// the CPU, which is.
Expectation CopyOf(const QuantizedTensor& from, const QuantizedOutput& to) {
  Expectation result;
  const auto copy = [&](const char* name, const ConstTensor& source, const Tensor& target) {
    if (!target) return;
    Expected& e = result.emplace_back(name, target);
    for (int64_t i = 0; i < target.cols; ++i) e.SetExact(0, i, Get(source, 0, i));
  };
  copy("codes", from.codes, to.codes);
  copy("absmax", from.absmax, to.absmax);
  copy("nested_absmax", from.nested_absmax, to.nested_absmax);
  copy("offset", from.offset, to.offset);
  return result;
}

}  // namespace

Expectation Reference(const Pack& op) { return CopyOf(op.from, op.to); }
Expectation Reference(const Unpack& op) { return CopyOf(op.from, op.to); }

}  // namespace qlora::kernels::optest
