// Cases of the ops that work row by row: embedding, RMSNorm, rotary embedding, gated activations.

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/kernels/op_cases.h"

namespace qlora::kernels::optest {
namespace {

std::string Describe(const RowParams& p, const std::string& more) {
  return absl::StrCat(p.rows, "×", p.cols, " ", NameOf(p.dtype), " live ", p.live, " ", more,
                      p.in_place ? " in place" : "", p.pitched ? " pitched" : "", " seed ", p.seed);
}

std::shared_ptr<OperandMemory> NewMemory(const RowParams& p) {
  return std::make_shared<OperandMemory>(p.seed, p.pitched);
}

ConstTensor NewLiveRows(OperandMemory& memory, int64_t live) {
  return live == kAllLive ? ConstTensor() : ConstTensor(memory.NewI32(int32_t(live)));
}

// Rows that hold data: `live` counts tokens.
int64_t Live(const RowParams& p) { return p.live == kAllLive ? p.rows : p.live * p.rows_per_token; }

Tensor NewNormal(OperandMemory& memory, const RowParams& p, double deviation) {
  const Tensor t = memory.New(p.dtype, p.rows, p.cols);
  FillNormal(memory.random(), t, deviation, Live(p));
  return t;
}

ConstTensor NewIndices(OperandMemory& memory, const RowParams& p, int64_t end) {
  const Tensor t = memory.New(DType::kI32, p.rows, 1);
  FillIntegers(memory.random(), t, 0, end, Live(p));
  return t;
}

ConstTensor NewWeight(OperandMemory& memory, const RowParams& p) {
  const Tensor t = memory.New(p.weight, 1, p.cols);
  for (int64_t c = 0; c < p.cols; ++c) Put(t, 0, c, 1 + 0.3 * memory.random().Normal());
  return t;
}

RowParams RandomParams(CountedRandom& random, int index, uint64_t seed) {
  RowParams p;
  p.seed = seed * 1000003 + uint64_t(index);
  p.rows = random.Pick<int64_t>({0, 1, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 129});
  p.cols = random.Pick<int64_t>(
      {1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 257});
  if (index % 20 == 19) {
    p.rows = random.Pick<int64_t>({1, 2, 5, 257});
    p.cols = random.Pick<int64_t>({513, 1025, 2048, 4099});
  }
  p.dtype = random.Chance(0.6) ? DType::kBf16 : DType::kF32;
  p.weight = random.Pick({DType::kBf16, DType::kF16, DType::kF32});
  if (random.Chance(0.5)) p.live = random.Chance(0.2) ? 0 : random.Below(p.rows + 1);
  p.pitched = index % 3 != 0;
  p.in_place = random.Chance(0.4);
  return p;
}

CountedRandom Stream(uint64_t seed, int op, int index) {
  return CountedRandom(seed * 0x10001 + uint64_t(op) * 0x1000000 + uint64_t(index));
}

void AddEmbedding(CountedRandom& random, RowParams& p) {
  p.vocabulary = random.Pick<int64_t>({1, 2, 7, 64, 300});
  p.scale = random.Pick({1.0f, 1.0f, 0.5f, 22.627417f, 3.3f});
}

void AddNorm(CountedRandom& random, RowParams& p) {
  p.residual = random.Chance(0.5);
  p.train_weight = random.Chance(0.5);
  p.weight_offset = random.Chance(0.3) ? 1.0f : 0.0f;
  p.rows_per_token = random.Pick<int64_t>({1, 1, 1, 2, 4, 7});
  if (p.live != kAllLive) {
    p.live = std::min(p.live, p.rows);
    p.rows *= p.rows_per_token;
    if (p.rows * p.cols > 300000) p.rows_per_token = 1, p.rows = p.live;
  } else {
    p.rows_per_token = 1;
  }
}

}  // namespace

OpCase<EmbeddingForward> MakeEmbeddingForward(const RowParams& p) {
  auto memory = NewMemory(p);
  EmbeddingForward op;
  op.ids = NewIndices(*memory, p, p.vocabulary);
  const Tensor table = memory->New(p.weight, p.vocabulary, p.cols);
  FillNormal(memory->random(), table, 1);
  op.table = table;
  op.live_rows = NewLiveRows(*memory, p.live);
  op.scale = p.scale;
  op.y = memory->New(p.dtype, p.rows, p.cols);
  return {Describe(p, absl::StrCat("of ", p.vocabulary, " ", NameOf(p.weight), " scale ", p.scale)),
          memory, op};
}

OpCase<EmbeddingBackward> MakeEmbeddingBackward(const RowParams& p) {
  auto memory = NewMemory(p);
  EmbeddingBackward op;
  op.ids = NewIndices(*memory, p, p.vocabulary);
  op.dy = NewNormal(*memory, p, 1);
  op.live_rows = NewLiveRows(*memory, p.live);
  op.scale = p.scale;
  op.dtable = memory->New(DType::kF32, p.vocabulary, p.cols);
  FillNormal(memory->random(), op.dtable, 1);
  return {Describe(p, absl::StrCat("of ", p.vocabulary, " scale ", p.scale)), memory, op};
}

OpCase<RmsNormForward> MakeRmsNormForward(const RowParams& p) {
  auto memory = NewMemory(p);
  RmsNormForward op;
  op.x = NewNormal(*memory, p, 2);
  if (p.residual) op.residual = NewNormal(*memory, p, 1);
  op.weight = NewWeight(*memory, p);
  op.live_rows = NewLiveRows(*memory, p.live);
  op.rows_per_token = p.rows_per_token;
  op.weight_offset = p.weight_offset;
  if (p.residual) op.sum = memory->New(p.dtype, p.rows, p.cols);
  op.y = memory->New(p.dtype, p.rows, p.cols);
  op.rstd = memory->New(DType::kF32, p.rows, 1);
  std::string products;
  for (const LinearParams::Adapter& a : p.products) {
    op.products.push_back(
        NewFirstProduct(*memory, {.rows = p.rows, .in = p.cols, .x = p.dtype}, a));
    absl::StrAppend(&products, " [r", a.rank, " rows ", a.first, ":", a.end, " drop ", a.dropout,
                    "]");
  }
  return {
      Describe(p, absl::StrCat("weight ", NameOf(p.weight), "+", p.weight_offset, " rows/token ",
                               p.rows_per_token, p.residual ? " residual" : "", products)),
      memory, op};
}

OpCase<RmsNormBackward> MakeRmsNormBackward(const RowParams& p) {
  auto memory = NewMemory(p);
  RmsNormBackward op;
  const Tensor dy = NewNormal(*memory, p, 1);
  op.dy = dy;
  op.x = NewNormal(*memory, p, 2);
  op.weight = NewWeight(*memory, p);
  const Tensor rstd = memory->New(DType::kF32, p.rows, 1);
  for (int64_t r = 0; r < Live(p); ++r) {
    double squares = 0;
    for (int64_t c = 0; c < p.cols; ++c) squares += Get(op.x, r, c) * Get(op.x, r, c);
    Put(rstd, r, 0, 1 / std::sqrt(squares / double(p.cols) + 1e-5));
  }
  op.rstd = rstd;
  Tensor dresidual;
  if (p.residual) op.dresidual = dresidual = NewNormal(*memory, p, 1);
  op.live_rows = NewLiveRows(*memory, p.live);
  op.rows_per_token = p.rows_per_token;
  op.weight_offset = p.weight_offset;
  op.dx = !p.in_place                ? memory->New(p.dtype, p.rows, p.cols)
          : p.residual && p.seed % 2 ? dresidual
                                     : dy;
  if (p.train_weight) {
    op.dweight = memory->New(DType::kF32, 1, p.cols);
    FillNormal(memory->random(), op.dweight, 1);
  }
  return {Describe(p, absl::StrCat("weight ", NameOf(p.weight), "+", p.weight_offset,
                                   " rows/token ", p.rows_per_token, p.residual ? " dresidual" : "",
                                   p.train_weight ? " dweight" : "")),
          memory, op};
}

OpCase<Rope> MakeRope(const RowParams& p) {
  auto memory = NewMemory(p);
  Rope op;
  const Tensor x = NewNormal(*memory, p, 1);
  op.x = x;
  op.positions = NewIndices(*memory, p, p.positions);
  const Tensor cosine = memory->New(DType::kF32, p.positions, p.rotary / 2);
  const Tensor sine = memory->New(DType::kF32, p.positions, p.rotary / 2);
  // YaRN's attention factor is part of the tables.
  const double factor = p.seed % 3 == 0 ? 1.2079 : 1.0;
  for (int64_t t = 0; t < p.positions; ++t) {
    for (int64_t i = 0; i < p.rotary / 2; ++i) {
      const double angle = double(t) * std::pow(10000.0, -2.0 * double(i) / double(p.rotary));
      Put(cosine, t, i, factor * std::cos(angle));
      Put(sine, t, i, factor * std::sin(angle));
    }
  }
  op.cos = cosine, op.sin = sine;
  op.live_rows = NewLiveRows(*memory, p.live);
  op.head_size = p.head_size;
  op.inverse = p.inverse;
  op.y = p.in_place ? x : memory->New(p.dtype, p.rows, p.cols);
  return {Describe(p, absl::StrCat("head ", p.head_size, " rotary ", p.rotary, " positions ",
                                   p.positions, p.inverse ? " inverse" : "")),
          memory, op};
}

namespace {

std::string NameOf(Activation activation) {
  return activation == Activation::kSilu ? "silu" : "gelu_tanh";
}

}  // namespace

OpCase<GatedActivationForward> MakeGatedActivationForward(const RowParams& p) {
  auto memory = NewMemory(p);
  GatedActivationForward op;
  op.gate = NewNormal(*memory, p, p.seed % 5 == 0 ? 30 : 2);
  op.up = NewNormal(*memory, p, 1);
  op.live_rows = NewLiveRows(*memory, p.live);
  op.activation = p.activation;
  op.out = memory->New(p.dtype, p.rows, p.cols);
  return {Describe(p, NameOf(p.activation)), memory, op};
}

OpCase<GatedActivationBackward> MakeGatedActivationBackward(const RowParams& p) {
  auto memory = NewMemory(p);
  GatedActivationBackward op;
  const Tensor gate = NewNormal(*memory, p, p.seed % 5 == 0 ? 30 : 2);
  const Tensor up = NewNormal(*memory, p, 1), dout = NewNormal(*memory, p, 1);
  op.gate = gate, op.up = up, op.dout = dout;
  op.live_rows = NewLiveRows(*memory, p.live);
  op.activation = p.activation;
  if (p.in_place) {
    op.dgate = p.seed % 3 == 0 ? dout : gate;
    op.dup = p.seed % 3 == 1 ? dout : up;
  } else {
    op.dgate = memory->New(p.dtype, p.rows, p.cols);
    op.dup = memory->New(p.dtype, p.rows, p.cols);
  }
  return {Describe(p, NameOf(p.activation)), memory, op};
}

int OpCases<EmbeddingForward>::Count() { return 240; }
OpCase<EmbeddingForward> OpCases<EmbeddingForward>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 9, index);
  RowParams p = RandomParams(random, index, seed);
  AddEmbedding(random, p);
  return MakeEmbeddingForward(p);
}

int OpCases<EmbeddingBackward>::Count() { return 240; }
OpCase<EmbeddingBackward> OpCases<EmbeddingBackward>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 10, index);
  RowParams p = RandomParams(random, index, seed);
  AddEmbedding(random, p);
  return MakeEmbeddingBackward(p);
}

int OpCases<RmsNormForward>::Count() { return 260; }
OpCase<RmsNormForward> OpCases<RmsNormForward>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 11, index);
  RowParams p = RandomParams(random, index, seed);
  AddNorm(random, p);
  if (p.rows_per_token == 1 && random.Chance(0.4)) {
    p.products = RandomAdapters(random, 1, p.rows);
  }
  return MakeRmsNormForward(p);
}

int OpCases<RmsNormBackward>::Count() { return 260; }
OpCase<RmsNormBackward> OpCases<RmsNormBackward>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 12, index);
  RowParams p = RandomParams(random, index, seed);
  AddNorm(random, p);
  return MakeRmsNormBackward(p);
}

int OpCases<Rope>::Count() { return 260; }
OpCase<Rope> OpCases<Rope>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 13, index);
  RowParams p = RandomParams(random, index, seed);
  p.head_size = random.Pick<int64_t>({2, 3, 8, 10, 16, 32, 34, 64, 80, 128});
  const int64_t heads = random.Pick<int64_t>({1, 1, 2, 3, 8});
  p.cols = heads * p.head_size;
  p.rotary = random.Chance(0.6) ? p.head_size / 2 * 2
                                : 2 * (1 + random.Below(std::max<int64_t>(1, p.head_size / 2)));
  p.positions = random.Pick<int64_t>({1, 2, 50, 300});
  p.inverse = random.Chance(0.5);
  return MakeRope(p);
}

int OpCases<GatedActivationForward>::Count() { return 240; }
OpCase<GatedActivationForward> OpCases<GatedActivationForward>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 14, index);
  RowParams p = RandomParams(random, index, seed);
  p.activation = random.Pick({Activation::kSilu, Activation::kGeluTanh});
  return MakeGatedActivationForward(p);
}

int OpCases<GatedActivationBackward>::Count() { return 260; }
OpCase<GatedActivationBackward> OpCases<GatedActivationBackward>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 15, index);
  RowParams p = RandomParams(random, index, seed);
  p.activation = random.Pick({Activation::kSilu, Activation::kGeluTanh});
  return MakeGatedActivationBackward(p);
}

}  // namespace qlora::kernels::optest
