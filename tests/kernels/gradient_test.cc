// The references of the backward ops against central differences of the references of the forward
// ops: this is what makes the former worth comparing with. Everything is fp32 storage and fp64
// arithmetic, so a difference over 2h = 2⁻⁸ is good to about h² times a third derivative: a few
// 1e-6 of the gradients here.
//
// For outputs y and random weights w, the loss is Σ w·y; w is what backward receives.

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

constexpr double kStep = 0x1p-9;
constexpr double kTolerance = 2e-5;

Tensor Mutable(const ConstTensor& t) {
  return {const_cast<void*>(t.data), t.dtype, t.rows, t.cols, t.pitch};
}

// Σ weight · output over the elements that the op defines.
double Loss(const Expected& output, const ConstTensor& weight) {
  double sum = 0;
  for (int64_t r = 0; r < output.view.rows; ++r) {
    for (int64_t c = 0; c < output.view.cols; ++c) {
      if (output.rule[output.Index(r, c)] == Expected::Rule::kUntouched) continue;
      sum += output.Value(r, c) * Get(weight, r, c);
    }
  }
  return sum;
}

// Compares `gradient` (less what was there before, where it is added to) with differences of `loss`
// in every element of `operand` that is `live`.
void ExpectGradient(const std::string& what, const ConstTensor& operand, const Expected& gradient,
                    bool accumulated, const std::function<double()>& loss) {
  const Tensor x = Mutable(operand);
  double largest = 1e-3;
  for (size_t i = 0; i < gradient.value.size(); ++i) {
    largest = std::max(largest, std::abs(gradient.value[i]));
  }
  int compared = 0;
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      if (gradient.rule[gradient.Index(r, c)] == Expected::Rule::kUntouched) continue;
      const double value = Get(x, r, c);
      Put(x, r, c, value + kStep);
      const double above = Get(x, r, c), loss_above = loss();
      Put(x, r, c, value - kStep);
      const double below = Get(x, r, c), loss_below = loss();
      Put(x, r, c, value);
      const double difference = (loss_above - loss_below) / (above - below);
      const double old = accumulated ? Get(gradient.view, r, c) : 0.0;
      ASSERT_NEAR(gradient.Value(r, c) - old, difference, kTolerance * largest)
          << what << " (row " << r << ", column " << c << ")";
      ++compared;
    }
  }
  EXPECT_GT(compared, 0) << what;
}

TEST(Gradient, Embedding) {
  const auto b = MakeEmbeddingBackward(
      {.rows = 9, .cols = 5, .dtype = DType::kF32, .live = 7, .vocabulary = 4, .scale = 1.5f});
  const ConstTensor table = b.memory->New(DType::kF32, 4, 5);
  FillNormal(b.memory->random(), Mutable(table), 1);
  EmbeddingForward f{.ids = b.op.ids,
                     .table = table,
                     .live_rows = b.op.live_rows,
                     .scale = 1.5f,
                     .y = b.memory->New(DType::kF32, 9, 5)};
  const auto loss = [&] { return Loss(Find(Reference(f), "y"), b.op.dy); };
  ExpectGradient("dtable", table, Find(Reference(b.op), "dtable"), true, loss);
}

TEST(Gradient, RmsNorm) {
  for (float offset : {0.0f, 1.0f}) {
    const auto b = MakeRmsNormBackward({.rows = 5,
                                        .cols = 7,
                                        .dtype = DType::kF32,
                                        .weight = DType::kF32,
                                        .live = 4,
                                        .train_weight = true,
                                        .weight_offset = offset});
    RmsNormForward f;
    f.x = b.op.x, f.weight = b.op.weight, f.live_rows = b.op.live_rows;
    f.weight_offset = offset;
    f.y = b.memory->New(DType::kF32, 5, 7), f.rstd = b.memory->New(DType::kF32, 5, 1);
    const auto loss = [&] { return Loss(Find(Reference(f), "y"), b.op.dy); };
    ExpectGradient("dx", b.op.x, Find(Reference(b.op), "dx"), false, loss);
    ExpectGradient("dweight", b.op.weight, Find(Reference(b.op), "dweight"), true, loss);
  }
}

TEST(Gradient, RmsNormAddsTheGradientThatPassesTheNorm) {
  const auto b = MakeRmsNormBackward(
      {.rows = 3, .cols = 6, .dtype = DType::kF32, .weight = DType::kF32, .residual = true});
  RmsNormForward f;
  f.x = b.op.x, f.weight = b.op.weight;
  const Tensor zero = b.memory->New(DType::kF32, 3, 6);
  FillValue(zero, 0);
  f.residual = zero;
  f.sum = b.memory->New(DType::kF32, 3, 6), f.y = b.memory->New(DType::kF32, 3, 6);
  f.rstd = b.memory->New(DType::kF32, 3, 1);
  const auto loss = [&] {
    const Expectation e = Reference(f);
    return Loss(Find(e, "y"), b.op.dy) + Loss(Find(e, "sum"), b.op.dresidual);
  };
  ExpectGradient("dx", b.op.x, Find(Reference(b.op), "dx"), false, loss);
}

TEST(Gradient, RopeInverseIsItsBackward) {
  const RowParams p{.rows = 4,
                    .cols = 20,
                    .dtype = DType::kF32,
                    .live = 3,
                    .head_size = 10,
                    .rotary = 8,
                    .positions = 30};
  auto f = MakeRope(p);
  const Tensor dy = f.memory->New(DType::kF32, 4, 20);
  FillNormal(f.memory->random(), dy, 1);
  Rope b = f.op;
  b.x = dy, b.inverse = true, b.y = f.memory->New(DType::kF32, 4, 20);
  const auto loss = [&] { return Loss(Find(Reference(f.op), "y"), dy); };
  ExpectGradient("dx", f.op.x, Find(Reference(b), "y"), false, loss);
}

TEST(Gradient, GatedActivation) {
  for (Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    const auto b = MakeGatedActivationBackward(
        {.rows = 6, .cols = 9, .dtype = DType::kF32, .live = 5, .activation = activation});
    GatedActivationForward f;
    f.gate = b.op.gate, f.up = b.op.up, f.live_rows = b.op.live_rows, f.activation = activation;
    f.out = b.memory->New(DType::kF32, 6, 9);
    const auto loss = [&] { return Loss(Find(Reference(f), "out"), b.op.dout); };
    ExpectGradient("dgate", b.op.gate, Find(Reference(b.op), "dgate"), false, loss);
    ExpectGradient("dup", b.op.up, Find(Reference(b.op), "dup"), false, loss);
  }
}

// One linear layer with two overlapping adapters, dropout and a bias; gradients of everything that
// has one.
TEST(Gradient, Linear) {
  LinearParams p{.rows = 7,
                 .in = 6,
                 .out = 5,
                 .x = DType::kF32,
                 .y = DType::kF32,
                 .base = LinearBase::Kind::kDense,
                 .dense = DType::kF32,
                 .bias = true,
                 .bias_type = DType::kF32,
                 .live = 6};
  p.adapters = {{.rank = 2, .scale = 1.5f, .dropout = 0.3f},
                {.rank = 3, .first = 2, .end = 5, .scale = -0.5f}};
  const auto f = MakeLinearForward(p);
  const Tensor dy = f.memory->New(DType::kF32, 7, 5);
  FillNormal(f.memory->random(), dy, 1, 6);
  const auto loss = [&] { return Loss(Find(Reference(f.op), "y"), dy); };

  LinearBackwardInput input;
  input.dy = dy, input.base = f.op.base, input.live_rows = f.op.live_rows;
  input.adapters = f.op.adapters;
  for (const LinearParams::Adapter& a : p.adapters) {
    input.up.push_back(f.memory->New(DType::kF32, 7, a.rank));
  }
  input.dx = f.memory->New(DType::kF32, 7, 6);
  const Expectation through = Reference(input), forward = Reference(f.op);
  ExpectGradient("dx", f.op.x, Find(through, "dx"), false, loss);

  for (size_t i = 0; i < p.adapters.size(); ++i) {
    // low and up as the other two ops leave them.
    for (const Expected& e : {forward[i], through[i]}) {
      for (int64_t r = 0; r < e.view.rows; ++r) {
        for (int64_t c = 0; c < e.view.cols; ++c) Put(e.view, r, c, e.Value(r, c));
      }
    }
    const AdapterSegment& s = f.op.adapters[i];
    LinearBackwardAdapter adapter;
    adapter.x = f.op.x, adapter.dy = dy, adapter.low = f.op.low[i], adapter.up = input.up[i];
    adapter.live_rows = f.op.live_rows, adapter.rows = s.rows, adapter.scale = s.scale;
    adapter.dropout = s.dropout, adapter.accumulate = false;
    adapter.da = f.memory->New(DType::kF32, s.a.rows, 6);
    adapter.db = f.memory->New(DType::kF32, 5, s.a.rows);
    const Expectation gradients = Reference(adapter);
    ExpectGradient("da", s.a, Find(gradients, "da"), false, loss);
    ExpectGradient("db", s.b, Find(gradients, "db"), false, loss);
  }

  LinearBackwardWeight weight;
  weight.x = f.op.x, weight.dy = dy, weight.live_rows = f.op.live_rows, weight.accumulate = false;
  weight.dweight = f.memory->New(DType::kF32, 5, 6);
  weight.dbias = f.memory->NewRow(DType::kF32, 5);
  ExpectGradient("dweight", f.op.base.dense, Find(Reference(weight), "dweight"), false, loss);
  ExpectGradient("dbias", f.op.bias, Find(Reference(weight), "dbias"), false, loss);
}

// A quantized base has no gradient of its own; the one of x passes through the decoded weights.
TEST(Gradient, LinearThroughAQuantizedBase) {
  const LinearParams p{.rows = 3,
                       .in = 33,
                       .out = 5,
                       .x = DType::kF32,
                       .y = DType::kF32,
                       .spec = {.block_size = 32}};
  const auto f = MakeLinearForward(p);
  const Tensor dy = f.memory->New(DType::kF32, 3, 5);
  FillNormal(f.memory->random(), dy, 1);
  LinearBackwardInput input;
  input.dy = dy, input.base = f.op.base, input.dx = f.memory->New(DType::kF32, 3, 33);
  ExpectGradient("dx", f.op.x, Find(Reference(input), "dx"), false,
                 [&] { return Loss(Find(Reference(f.op), "y"), dy); });
}

TEST(Gradient, Attention) {
  struct {
    float softcap;
    int64_t window;
    bool cached;
  } const kKinds[] = {{0, 0, false}, {2, 0, false}, {0, 3, false}, {1.5, 2, true}};
  for (const auto& kind : kKinds) {
    AttentionParams p;
    p.shape = {.query_heads = 4,
               .kv_heads = 2,
               .head_size = 3,
               .scale = 0.7f,
               .softcap = kind.softcap,
               .window = kind.window};
    p.dtype = DType::kF32;
    p.documents = {{0, 4, 0, 4}, {4, 3, 4, 3}};
    p.query_rows = p.key_rows = 8;
    if (kind.cached) {
      p.documents = {{0, 2, 5, 4}, {3, 3, 0, 4}};
      p.query_rows = 6, p.key_rows = 10;
    }
    const auto b = MakeAttentionBackward(p);
    AttentionForward f;
    f.q = b.op.q, f.k = b.op.k, f.v = b.op.v, f.shape = b.op.shape;
    f.documents = b.op.documents, f.document_count = b.op.document_count;
    f.o = Mutable(b.op.o), f.lse = Mutable(b.op.lse);
    const auto loss = [&] { return Loss(Find(Reference(f), "o"), b.op.dout); };
    const Expectation gradients = Reference(b.op);
    ExpectGradient("dq", b.op.q, Find(gradients, "dq"), false, loss);
    ExpectGradient("dk", b.op.k, Find(gradients, "dk"), false, loss);
    ExpectGradient("dv", b.op.v, Find(gradients, "dv"), false, loss);
  }
}

TEST(Gradient, LinearCrossEntropy) {
  for (float softcap : {0.0f, 3.0f}) {
    CrossEntropyParams p;
    p.head = {.rows = 6,
              .in = 4,
              .out = 9,
              .x = DType::kF32,
              .base = LinearBase::Kind::kDense,
              .dense = DType::kF32,
              .live = 5};
    p.capacity = 4, p.trained = 3, p.softcap = softcap, p.dhead = true;
    const auto c = MakeLinearCrossEntropy(p);
    const auto loss = [&] { return Find(Reference(c.op), "loss").Value(0, 0); };
    const Expectation gradients = Reference(c.op);
    ExpectGradient("dh", c.op.h, Find(gradients, "dh"), false, loss);
    ExpectGradient("dhead", c.op.head.dense, Find(gradients, "dhead"), false, loss);
  }
}

}  // namespace
}  // namespace qlora::kernels::optest
