#include "bench/gpu_cases.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace qlora::bench {
namespace {

using namespace kernels;  // NOLINT: the ops

constexpr DType kF32 = DType::kF32, kBf16 = DType::kBf16, kI32 = DType::kI32;

Tensor I32(GpuOperands& o, std::vector<int32_t> values, int64_t rows) {
  return o.Table(kI32, rows, values);
}

// 0, step, 2·step, ... modulo `limit`.
std::vector<int32_t> Stride(int64_t n, int64_t step, int64_t limit) {
  std::vector<int32_t> values(n);
  for (int64_t i = 0; i < n; ++i) values[i] = int32_t(i * step % limit);
  return values;
}
constexpr int64_t kIdStep = 7919;  // a prime: ids are spread over the vocabulary

// ---- Linear

enum class Base { kNf4, kDense };

struct LinearShape {
  int64_t rows, in, out;
  Base base = Base::kNf4;
  int64_t rank = 0;  // 0: no adapter
  float dropout = 0.0f;
};

std::string NameOf(const LinearShape& s) {
  return absl::StrCat(s.base == Base::kNf4 ? "nf4" : "bf16",
                      s.rank > 0 ? absl::StrCat("_r", s.rank) : "", s.dropout > 0 ? "_dropout" : "",
                      "/M", s.rows, "/", s.in, "x", s.out);
}

LinearBase NewBase(GpuOperands& o, const LinearShape& s) {
  LinearBase base;
  base.out_features = s.out;
  base.in_features = s.in;
  if (s.base == Base::kNf4) {
    base.kind = LinearBase::Kind::kQuantized;
    base.quantized = o.Quantized(s.out, s.in);
  } else {
    base.kind = LinearBase::Kind::kDense;
    base.dense = o.Random(kBf16, s.out, s.in, 1 / std::sqrt(float(s.in)));
  }
  return base;
}

Dropout NewDropout(GpuOperands& o, float probability) {
  Dropout dropout{.probability = probability, .key = 3, .counter = {}};
  if (probability > 0) dropout.counter = I32(o, {1, 2, 3, 4}, 1);
  return dropout;
}

std::vector<AdapterSegment> NewAdapters(GpuOperands& o, const LinearShape& s) {
  if (s.rank == 0) return {};
  AdapterSegment segment;
  segment.a = o.Random(kBf16, s.rank, s.in, 1 / std::sqrt(float(s.in)));
  segment.b = o.Random(kBf16, s.out, s.rank, 0.01f);
  segment.scale = 2.0f;
  segment.dropout = NewDropout(o, s.dropout);
  return {segment};
}

// An input with room behind it where there is an adapter; `tail` is all of that.
Tensor NewInput(GpuOperands& o, const LinearShape& s, int64_t cols, Tensor* tail) {
  const Tensor wide = o.Random(kBf16, s.rows, PitchWithTail(cols, s.rank), 1);
  if (wide) *tail = Slice(wide, 0, s.rows, cols, wide.cols - cols);
  return Slice(wide, 0, s.rows, 0, cols);
}

LinearForward NewForward(GpuOperands& o, const LinearShape& s) {
  LinearForward op;
  op.x = NewInput(o, s, s.in, &op.tail);
  op.base = NewBase(o, s);
  op.adapters = NewAdapters(o, s);
  if (s.rank > 0) op.low = {o.Zeros(kBf16, s.rows, s.rank)};
  op.y = o.Zeros(kBf16, s.rows, s.out);
  return op;
}

LinearBackwardInput NewBackwardInput(GpuOperands& o, const LinearShape& s) {
  LinearBackwardInput op;
  op.dy = NewInput(o, s, s.out, &op.tail);
  op.base = NewBase(o, s);
  op.adapters = NewAdapters(o, s);
  if (s.rank > 0) op.up = {o.Zeros(kBf16, s.rows, s.rank)};
  op.dx = o.Zeros(kBf16, s.rows, s.in);
  return op;
}

LinearBackwardAdapter NewBackwardAdapter(GpuOperands& o, const LinearShape& s) {
  LinearBackwardAdapter op;
  op.x = o.Random(kBf16, s.rows, s.in, 1);
  op.dy = o.Random(kBf16, s.rows, s.out, 1);
  op.low = o.Random(kBf16, s.rows, s.rank, 1);
  op.up = o.Random(kBf16, s.rows, s.rank, 1);
  op.scale = 2.0f;
  op.dropout = NewDropout(o, s.dropout);
  op.da = o.Zeros(kF32, s.rank, s.in);
  op.db = o.Zeros(kF32, s.out, s.rank);
  return op;
}

LinearBackwardWeight NewBackwardWeight(GpuOperands& o, const LinearShape& s) {
  LinearBackwardWeight op;
  op.x = o.Random(kBf16, s.rows, s.in, 1);
  op.dy = o.Random(kBf16, s.rows, s.out, 1);
  op.dweight = o.Zeros(kF32, s.out, s.in);
  return op;
}

template <class OpType>
void AddLinear(std::vector<GpuCase>* cases, const LinearShape& s,
               OpType (*make)(GpuOperands&, const LinearShape&)) {
  cases->push_back({absl::StrCat(OpType::kName, "/", NameOf(s)),
                    [s, make](GpuOperands& o) -> Op { return make(o, s); }});
}

void AddLinears(const BenchShapes& shapes, std::vector<GpuCase>* cases) {
  for (const BenchShapes::Features& w : shapes.weights) {
    for (const int64_t rows : shapes.rows) {
      const bool backward = rows >= shapes.backward_rows;
      for (LinearShape s : {LinearShape{rows, w.in, w.out, Base::kNf4},
                            LinearShape{rows, w.in, w.out, Base::kDense},
                            LinearShape{rows, w.in, w.out, Base::kNf4, 16}}) {
        if (s.rank > 0 && !backward) continue;
        AddLinear(cases, s, &NewForward);
        if (backward) AddLinear(cases, s, &NewBackwardInput);
      }
    }
    const LinearShape step{shapes.tokens, w.in, w.out, Base::kNf4, 16};
    LinearShape wide = step, dropped = step;
    wide.rank = 64;
    dropped.dropout = 0.05f;
    AddLinear(cases, step, &NewBackwardAdapter);
    AddLinear(cases, wide, &NewBackwardAdapter);
    AddLinear(cases, dropped, &NewForward);
    AddLinear(cases, dropped, &NewBackwardInput);
    AddLinear(cases, dropped, &NewBackwardAdapter);
    AddLinear(cases, {shapes.tokens, w.in, w.out, Base::kDense}, &NewBackwardWeight);
  }
}

// ---- Attention

AttentionShape ShapeOf(const ModelShape& m) {
  AttentionShape shape;
  shape.query_heads = m.query_heads;
  shape.kv_heads = m.kv_heads;
  shape.head_size = m.head_size;
  shape.scale = 1 / std::sqrt(float(m.head_size));
  return shape;
}

AttentionForward NewAttention(GpuOperands& o, const ModelShape& m, int64_t tokens) {
  const int32_t t = int32_t(tokens);
  AttentionForward op;
  op.q = o.Random(kBf16, tokens, m.query_heads * m.head_size, 1);
  op.k = o.Random(kBf16, tokens, m.kv_heads * m.head_size, 1);
  op.v = o.Random(kBf16, tokens, m.kv_heads * m.head_size, 1);
  op.documents = I32(o, {0, t, 0, t}, 1);
  op.document_count = I32(o, {1}, 1);
  op.shape = ShapeOf(m);
  op.o = o.Zeros(kBf16, tokens, op.q.cols);
  op.lse = o.Zeros(kF32, tokens, m.query_heads);
  return op;
}

AttentionBackward NewAttentionBackward(GpuOperands& o, const ModelShape& m, int64_t tokens) {
  const AttentionForward forward = NewAttention(o, m, tokens);
  AttentionBackward op;
  op.q = forward.q, op.k = forward.k, op.v = forward.v, op.o = forward.o;
  op.dout = o.Random(kBf16, tokens, op.q.cols, 1);
  // About that of scores of deviation 1 over a thousand keys: probabilities stay small.
  op.lse = o.Value(tokens, m.query_heads, 7.5f);
  op.documents = forward.documents, op.document_count = forward.document_count;
  op.shape = forward.shape;
  op.dq = o.Zeros(kBf16, tokens, op.q.cols);
  op.dk = o.Zeros(kBf16, tokens, op.k.cols);
  op.dv = o.Zeros(kBf16, tokens, op.k.cols);
  return op;
}

KvAppend NewKvAppend(GpuOperands& o, const ModelShape& m, int64_t tokens) {
  const int32_t t = int32_t(tokens);
  KvAppend op;
  op.x = o.Random(kBf16, tokens, m.kv_heads * m.head_size, 1);
  op.documents = I32(o, {0, t, 0, t}, 1);
  op.document_count = I32(o, {1}, 1);
  op.cache = o.Zeros(kBf16, tokens, op.x.cols);
  return op;
}

// ---- Ops row by row

RmsNormForward NewNorm(GpuOperands& o, int64_t rows, int64_t cols, int64_t rows_per_token) {
  RmsNormForward op;
  op.x = o.Random(kBf16, rows, cols, 1);
  op.weight = o.Random(kBf16, 1, cols, 1);
  op.rows_per_token = rows_per_token;
  if (rows_per_token == 1) {
    op.residual = o.Random(kBf16, rows, cols, 1);
    op.sum = o.Zeros(kBf16, rows, cols);
  }
  op.y = o.Zeros(kBf16, rows, cols);
  op.rstd = o.Zeros(kF32, rows, 1);
  return op;
}

// With what the adapters of query, key and value read of it.
RmsNormForward NewNormWithProducts(GpuOperands& o, int64_t rows, int64_t cols, int64_t rank,
                                   float dropout) {
  RmsNormForward op = NewNorm(o, rows, cols, 1);
  for (int i = 0; i < 3; ++i) {
    op.products.push_back({.a = o.Random(kBf16, rank, cols, 1 / std::sqrt(float(cols))),
                           .dropout = NewDropout(o, dropout),
                           .low = o.Zeros(kBf16, rows, rank)});
  }
  return op;
}

RmsNormBackward NewNormBackward(GpuOperands& o, int64_t rows, int64_t cols, int64_t rows_per_token,
                                bool train_weight) {
  RmsNormBackward op;
  op.dy = o.Random(kBf16, rows, cols, 1);
  op.x = o.Random(kBf16, rows, cols, 1);
  op.weight = o.Random(kBf16, 1, cols, 1);
  op.rstd = o.Value(rows, 1, 1.0f);
  op.rows_per_token = rows_per_token;
  if (rows_per_token == 1) op.dresidual = o.Random(kBf16, rows, cols, 1);
  op.dx = o.Zeros(kBf16, rows, cols);
  if (train_weight) op.dweight = o.Zeros(kF32, 1, cols);
  return op;
}

Rope NewRope(GpuOperands& o, int64_t rows, int64_t heads, int64_t head_size, bool inverse) {
  Rope op;
  op.x = o.Random(kBf16, rows, heads * head_size, 1);
  op.positions = o.Table(kI32, rows, Stride(rows, 1, rows));
  op.cos = o.Random(kF32, rows, head_size / 2, 0.5f);
  op.sin = o.Random(kF32, rows, head_size / 2, 0.5f);
  op.head_size = head_size;
  op.inverse = inverse;
  op.y = o.Zeros(kBf16, rows, heads * head_size);
  return op;
}

GatedActivationForward NewGated(GpuOperands& o, int64_t rows, int64_t cols) {
  GatedActivationForward op;
  op.gate = o.Random(kBf16, rows, cols, 1);
  op.up = o.Random(kBf16, rows, cols, 1);
  op.out = o.Zeros(kBf16, rows, cols);
  return op;
}

GatedActivationBackward NewGatedBackward(GpuOperands& o, int64_t rows, int64_t cols) {
  GatedActivationBackward op;
  op.gate = o.Random(kBf16, rows, cols, 1);
  op.up = o.Random(kBf16, rows, cols, 1);
  op.dout = o.Random(kBf16, rows, cols, 1);
  op.dgate = o.Zeros(kBf16, rows, cols);
  op.dup = o.Zeros(kBf16, rows, cols);
  return op;
}

EmbeddingForward NewEmbedding(GpuOperands& o, const ModelShape& m, int64_t rows) {
  EmbeddingForward op;
  op.ids = o.Table(kI32, rows, Stride(rows, kIdStep, m.vocabulary));
  op.table = o.Random(kBf16, m.vocabulary, m.hidden, 1);
  op.y = o.Zeros(kBf16, rows, m.hidden);
  return op;
}

EmbeddingBackward NewEmbeddingBackward(GpuOperands& o, const ModelShape& m, int64_t rows) {
  EmbeddingBackward op;
  op.ids = o.Table(kI32, rows, Stride(rows, kIdStep, m.vocabulary));
  op.dy = o.Random(kBf16, rows, m.hidden, 1);
  op.dtable = o.Zeros(kF32, m.vocabulary, m.hidden);
  return op;
}

LinearCrossEntropy NewCrossEntropy(GpuOperands& o, const ModelShape& m, int64_t rows,
                                   int64_t chunk_rows) {
  LinearCrossEntropy op;
  op.h = o.Random(kBf16, rows, m.hidden, 1);
  op.head = NewBase(o, {rows, m.hidden, m.vocabulary, Base::kDense});
  op.rows = o.Table(kI32, rows, Stride(rows, 1, rows));
  op.targets = o.Table(kI32, rows, Stride(rows, kIdStep, m.vocabulary));
  op.count = I32(o, {int32_t(rows)}, 1);
  op.chunk_rows = chunk_rows;
  op.loss = o.Zeros(DType::kF64, 1, 1);
  op.dh = o.Zeros(kBf16, rows, m.hidden);
  return op;
}

void AddModel(const BenchShapes& shapes, const ModelShape& m, std::vector<GpuCase>* cases) {
  const auto Add = [&](const char* op, const std::string& shape, auto make) {
    cases->push_back({absl::StrCat(op, "/", m.name, "/", shape),
                      [make](GpuOperands& o) -> Op { return make(o); }});
  };
  const int64_t t = shapes.tokens;
  const std::string rows = absl::StrCat("T", t, "/");
  for (const int64_t n : shapes.contexts) {
    Add(AttentionForward::kName, absl::StrCat("T", n),
        [m, n](GpuOperands& o) { return NewAttention(o, m, n); });
    Add(AttentionBackward::kName, absl::StrCat("T", n),
        [m, n](GpuOperands& o) { return NewAttentionBackward(o, m, n); });
  }
  Add(KvAppend::kName, absl::StrCat(rows, m.kv_heads * m.head_size),
      [m, t](GpuOperands& o) { return NewKvAppend(o, m, t); });
  Add(RmsNormForward::kName, absl::StrCat(rows, m.hidden, "_residual"),
      [m, t](GpuOperands& o) { return NewNorm(o, t, m.hidden, 1); });
  for (const float dropout : {0.0f, 0.05f}) {
    Add(RmsNormForward::kName,
        absl::StrCat(rows, m.hidden, "_residual_3xr16", dropout > 0 ? "_dropout" : ""),
        [m, t, dropout](GpuOperands& o) {
          return NewNormWithProducts(o, t, m.hidden, 16, dropout);
        });
  }
  for (const bool train : {false, true}) {
    Add(RmsNormBackward::kName, absl::StrCat(rows, m.hidden, "_residual", train ? "_trained" : ""),
        [m, t, train](GpuOperands& o) { return NewNormBackward(o, t, m.hidden, 1, train); });
  }
  if (m.head_norms) {
    const std::string heads = absl::StrCat(rows, m.query_heads, "x", m.head_size);
    Add(RmsNormForward::kName, heads, [m, t](GpuOperands& o) {
      return NewNorm(o, t * m.query_heads, m.head_size, m.query_heads);
    });
    Add(RmsNormBackward::kName, heads, [m, t](GpuOperands& o) {
      return NewNormBackward(o, t * m.query_heads, m.head_size, m.query_heads, false);
    });
  }
  for (const int64_t heads : {m.query_heads, m.kv_heads}) {
    Add(Rope::kName, absl::StrCat(rows, heads, "x", m.head_size),
        [m, t, heads](GpuOperands& o) { return NewRope(o, t, heads, m.head_size, false); });
  }
  Add(Rope::kName, absl::StrCat(rows, m.query_heads, "x", m.head_size, "_inverse"),
      [m, t](GpuOperands& o) { return NewRope(o, t, m.query_heads, m.head_size, true); });
  Add(GatedActivationForward::kName, absl::StrCat(rows, m.intermediate),
      [m, t](GpuOperands& o) { return NewGated(o, t, m.intermediate); });
  Add(GatedActivationBackward::kName, absl::StrCat(rows, m.intermediate),
      [m, t](GpuOperands& o) { return NewGatedBackward(o, t, m.intermediate); });
  const std::string table = absl::StrCat(rows, m.vocabulary, "x", m.hidden);
  Add(EmbeddingForward::kName, table, [m, t](GpuOperands& o) { return NewEmbedding(o, m, t); });
  Add(EmbeddingBackward::kName, table,
      [m, t](GpuOperands& o) { return NewEmbeddingBackward(o, m, t); });
  Add(LinearCrossEntropy::kName, table, [m, t, chunk = shapes.chunk_rows](GpuOperands& o) {
    return NewCrossEntropy(o, m, t, chunk);
  });
}

// ---- The update, and what is done once

AdamW NewAdamW(GpuOperands& o, int64_t n, bool coded) {
  const int64_t blocks = (n + kParameterBlock - 1) / kParameterBlock;
  const ParameterSegment segment{
      .first_block = 0, .rate_factor = 1, .weight_decay = 0.01f, .adapter = 0};
  std::vector<uint8_t> segments(sizeof segment);
  std::memcpy(segments.data(), &segment, sizeof segment);
  AdamW op;
  op.gradient = o.Random(kF32, 1, n, 1);
  op.segments = o.Table(DType::kU8, 1, segments);
  op.scalars = o.Table(kF32, 1, std::vector<float>{1e-4f, 0.6513f, 0.00995f});  // step 10
  op.gradient_scale = o.Value(1, 1, 0.001f);
  op.skip = I32(o, {0}, 1);
  op.parameter = o.Random(kF32, 1, n, 0.1f);
  if (coded) {
    op.m = o.RandomBytes(n);
    op.v = o.RandomBytes(n);
    op.m_absmax = o.Value(1, blocks, 0.01f);
    op.v_absmax = o.Value(1, blocks, 0.001f);
  } else {
    op.m = o.Random(kF32, 1, n, 0.001f);
    op.v = o.Value(1, n, 1e-6f);
  }
  op.compute = o.Zeros(kBf16, 1, n);
  return op;
}

void AddUpdate(int64_t n, std::vector<GpuCase>* cases) {
  const auto Add = [&](const char* op, const std::string& kind, auto make) {
    cases->push_back(
        {absl::StrCat(op, kind, "/", n), [make](GpuOperands& o) -> Op { return make(o); }});
  };
  Add(AdamW::kName, "/f32", [n](GpuOperands& o) { return NewAdamW(o, n, false); });
  Add(AdamW::kName, "/8bit", [n](GpuOperands& o) { return NewAdamW(o, n, true); });
  Add(NormAndFinite::kName, "/f32", [n](GpuOperands& o) {
    NormAndFinite op;
    op.x = o.Random(kF32, 1, n, 1);
    op.sum_of_squares = o.Zeros(DType::kF64, 1, 1);
    op.nonfinite = o.Zeros(kI32, 1, 1);
    return op;
  });
  Add(ContentHash::kName, "/f32", [n](GpuOperands& o) {
    ContentHash op;
    op.x = o.Random(kF32, 1, n, 1);
    op.hash = o.Zeros(DType::kU64, 1, 1);
    return op;
  });
  Add(AddGradient::kName, "", [n](GpuOperands& o) {
    return AddGradient{.from = o.Random(kF32, 1, n, 1), .into = o.Zeros(kF32, 1, n)};
  });
  Add(Zero::kName, "/f32", [n](GpuOperands& o) { return Zero{o.Zeros(kF32, 1, n)}; });
  cases->push_back({GradientScale::kName, [](GpuOperands& o) -> Op {
                      GradientScale op;
                      op.sum_of_squares = o.Zeros(DType::kF64, 1, 1);
                      op.nonfinite = o.Zeros(kI32, 1, 1);
                      op.loss = o.Zeros(DType::kF64, 1, 1);
                      op.inverse_tokens = o.Value(1, 1, 0.001f);
                      op.max_norm = 0.3f;
                      op.gradient_norm = o.Zeros(kF32, 1, 1);
                      op.gradient_scale = o.Zeros(kF32, 1, 1);
                      op.skip = o.Zeros(kI32, 1, 1);
                      return op;
                    }});
}

void AddQuantize(int64_t rows, int64_t cols, std::vector<GpuCase>* cases) {
  const auto Add = [&](const char* op, const char* kind, auto make) {
    cases->push_back({absl::StrCat(op, kind, "/", rows, "x", cols),
                      [make](GpuOperands& o) -> Op { return make(o); }});
  };
  Add(Quantize::kName, "/nf4_dq/bf16", [rows, cols](GpuOperands& o) {
    Quantize op;
    op.w = o.Random(kBf16, rows, cols, 0.02f);
    op.out = o.QuantizedOut(rows, cols);
    op.nonfinite = o.Zeros(kI32, 1, 1);
    return op;
  });
  Add(Dequantize::kName, "/nf4_dq/bf16", [rows, cols](GpuOperands& o) {
    return Dequantize{o.Quantized(rows, cols), o.Zeros(kBf16, rows, cols)};
  });
  Add(Pack::kName, "/nf4_dq", [rows, cols](GpuOperands& o) {
    return Pack{o.Quantized(rows, cols), rows, cols, o.QuantizedOut(rows, cols)};
  });
  Add(Unpack::kName, "/nf4_dq", [rows, cols](GpuOperands& o) {
    return Unpack{o.Quantized(rows, cols), rows, cols, o.QuantizedOut(rows, cols)};
  });
}

}  // namespace

BenchShapes TrainingShapes() {
  return {.weights = {{4096, 4096}, {4096, 14336}, {14336, 4096}},
          .rows = {1, 16, 512, 1024, 2048, 4096, 8192},
          .backward_rows = 512,
          .models = {{"llama3_8b", 4096, 14336, 32, 8, 128, 128256, false},
                     {"qwen3_0.6b", 1024, 3072, 16, 8, 128, 151936, true}},
          .tokens = 4096,
          .contexts = {2048, 4096, 8192},
          .parameters = 41943040,
          .chunk_rows = 1024};
}

std::vector<GpuCase> GpuCases(const BenchShapes& shapes) {
  std::vector<GpuCase> cases;
  AddLinears(shapes, &cases);
  for (const ModelShape& model : shapes.models) AddModel(shapes, model, &cases);
  AddUpdate(shapes.parameters, &cases);
  for (const BenchShapes::Features& w : shapes.weights) {
    AddQuantize(w.out, w.in, &cases);
  }
  return cases;
}

GpuCase DenseProduct(int64_t rows, int64_t in, int64_t out) {
  return {"dense", [=](GpuOperands& o) -> Op {
            return NewForward(o, {rows, in, out, Base::kDense});
          }};
}

}  // namespace qlora::bench
