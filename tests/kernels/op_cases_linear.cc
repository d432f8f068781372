// Cases of the linear ops and of linear + cross-entropy.

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "quant/dynamic_map.h"
#include "quant/reference_quantizer.h"
#include "tests/kernels/op_cases.h"

namespace qlora::kernels::optest {
namespace {

const char* NameOf(LinearBase::Kind kind) {
  constexpr const char* kNames[] = {"none", "dense", "quantized"};
  return kNames[int(kind)];
}

std::string Describe(const LinearParams& p) {
  std::string name = absl::StrCat("T", p.rows, " K", p.in, " N", p.out, " x ", kernels::NameOf(p.x),
                                  " y ", kernels::NameOf(p.y), " base ", NameOf(p.base));
  if (p.base == LinearBase::Kind::kDense) absl::StrAppend(&name, " ", kernels::NameOf(p.dense));
  if (p.base == LinearBase::Kind::kQuantized) {
    absl::StrAppend(&name, " ", std::string(quant::QuantTypeName(p.spec.type)), "/",
                    p.spec.block_size, p.spec.double_quant ? " dq" : "");
  }
  if (p.bias) absl::StrAppend(&name, " bias ", kernels::NameOf(p.bias_type));
  for (const LinearParams::Adapter& a : p.adapters) {
    absl::StrAppend(&name, " [r", a.rank, " rows ", a.first, ":", a.end, " scale ", a.scale,
                    " drop ", a.dropout, a.given ? " given" : "", "]");
  }
  absl::StrAppend(&name, " live ", p.live, p.accumulate ? " accumulate" : "",
                  p.want_dx ? "" : " no dx", p.tail > 0 ? " tail" : "", p.pitched ? " pitched" : "",
                  " seed ", p.seed);
  return name;
}

int64_t Live(const LinearParams& p) { return p.live == kAllLive ? p.rows : p.live; }

ConstTensor NewLiveRows(OperandMemory& memory, int64_t live) {
  return live == kAllLive ? ConstTensor() : ConstTensor(memory.NewI32(int32_t(live)));
}

Tensor NewNormal(OperandMemory& memory, DType dtype, int64_t rows, int64_t cols, double deviation,
                 int64_t live = -1) {
  const Tensor t = memory.New(dtype, rows, cols);
  FillNormal(memory.random(), t, deviation, live);
  return t;
}

// An activation [rows, cols] with p.tail columns of scratch behind it, full of poison.
Tensor NewWithTail(OperandMemory& memory, const LinearParams& p, int64_t cols, double deviation,
                   Tensor* tail) {
  const Tensor wide = memory.New(p.x, p.rows, cols + p.tail);
  if (p.tail > 0) *tail = Slice(wide, 0, p.rows, cols, p.tail);
  const Tensor t = Slice(wide, 0, p.rows, 0, cols);
  FillNormal(memory.random(), t, deviation, Live(p));
  return t;
}

LinearBase NewBase(OperandMemory& memory, const LinearParams& p) {
  LinearBase base;
  base.kind = p.base;
  base.out_features = p.out;
  base.in_features = p.in;
  if (p.base == LinearBase::Kind::kDense) {
    base.dense = NewNormal(memory, p.dense, p.out, p.in, 1 / std::sqrt(double(p.in) + 1));
  }
  if (p.base == LinearBase::Kind::kQuantized) {
    base.quantized = NewQuantized(memory, p.out, p.in, p.spec);
  }
  return base;
}

ConstTensor NewSegmentRows(OperandMemory& memory, const LinearParams::Adapter& a) {
  if (a.first < 0) return {};
  const Tensor rows = memory.NewRow(DType::kI32, 2);
  rows.Row<int32_t>(0)[0] = int32_t(a.first);
  rows.Row<int32_t>(0)[1] = int32_t(a.end);
  return rows;
}

// What is there for the rows of one segment alone, poison around it.
Tensor NewInSegment(OperandMemory& memory, const LinearParams& p, const LinearParams::Adapter& a) {
  const Tensor t = memory.New(p.x, p.rows, a.rank);
  const int64_t begin = a.first < 0 ? 0 : std::min(a.first, Live(p));
  const int64_t end = a.first < 0 ? Live(p) : std::min(a.end, Live(p));
  FillNormal(memory.random(), SliceRows(t, begin, std::max<int64_t>(0, end - begin)), 1);
  return t;
}

Dropout NewDropout(OperandMemory& memory, const LinearParams::Adapter& a) {
  Dropout dropout;
  dropout.probability = a.dropout;
  dropout.key = uint32_t(memory.random().Below(1000));
  if (a.dropout > 0) {
    const Tensor counter = memory.NewRow(DType::kI32, 4);
    FillIntegers(memory.random(), counter, -1000000, 1000000);
    dropout.counter = counter;
  }
  return dropout;
}

AdapterSegment NewSegment(OperandMemory& memory, const LinearParams& p,
                          const LinearParams::Adapter& a) {
  AdapterSegment s;
  s.a = NewNormal(memory, p.x, a.rank, p.in, 1 / std::sqrt(double(p.in) + 1));
  s.b = NewNormal(memory, p.x, p.out, a.rank, 0.5 / std::sqrt(double(a.rank)));
  s.rows = NewSegmentRows(memory, a);
  s.scale = a.scale;
  s.dropout = NewDropout(memory, a);
  return s;
}

std::shared_ptr<OperandMemory> NewMemory(const LinearParams& p) {
  return std::make_shared<OperandMemory>(p.seed, p.pitched);
}

// Small sizes about the edges of vectors (8, 16), of register and cache tiles (32, 48, 64), and of
// quantization blocks.
LinearParams RandomParams(CountedRandom& random, int index, uint64_t seed) {
  struct Size {
    int64_t rows, in, out;
  };
  constexpr Size kBig[] = {{1, 512, 513},  {8, 257, 512}, {65, 129, 257},  {129, 257, 65},
                           {64, 513, 129}, {257, 64, 64}, {130, 300, 200}, {7, 1030, 96},
                           {33, 65, 1025}, {2, 640, 640}, {96, 192, 320},  {5, 97, 770}};
  LinearParams p;
  p.seed = seed * 1000003 + uint64_t(index);
  p.rows = random.Pick<int64_t>(
      {0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65});
  for (int64_t* size : {&p.in, &p.out}) {
    *size = random.Pick<int64_t>(
        {1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 160, 200});
  }
  if (index % 20 == 19) {
    const Size& big = kBig[index / 20 % std::size(kBig)];
    p.rows = big.rows;
    p.in = big.in;
    p.out = big.out;
  }
  p.x = random.Chance(0.6) ? DType::kBf16 : DType::kF32;
  p.y = random.Chance(0.8) ? p.x : random.Pick({DType::kBf16, DType::kF32});
  p.base = LinearBase::Kind(random.Pick({0, 1, 1, 2, 2, 2}));
  p.dense = random.Chance(0.6) ? p.x : random.Pick({DType::kBf16, DType::kF16, DType::kF32});
  p.spec.type =
      random.Pick({quant::QuantType::kNf4, quant::QuantType::kNf4, quant::QuantType::kFp4E2M1,
                   quant::QuantType::kFp4E3M0, quant::QuantType::kInt4});
  p.spec.block_size = random.Pick({32, 64, 64, 64, 128, 256, 1024, 4096});
  p.spec.double_quant = random.Chance(0.7);
  p.bias = random.Chance(0.3);
  p.bias_type = random.Pick({DType::kBf16, DType::kF16, DType::kF32});
  if (random.Chance(0.5)) p.live = random.Chance(0.2) ? 0 : random.Below(p.rows + 1);
  p.accumulate = random.Chance(0.5);
  p.pitched = index % 3 != 0;
  return p;
}

LinearParams::Adapter RandomAdapter(CountedRandom& random) {
  LinearParams::Adapter a;
  a.rank = random.Pick<int64_t>({1, 2, 3, 4, 8, 8, 8, 16, 16, 17, 32, 64});
  a.scale = random.Pick({0.25f, 1.0f, 2.0f, 1.7f, -0.3f});
  if (random.Chance(0.3)) a.dropout = random.Pick({0.05f, 0.1f, 0.5f, 0.9f});
  return a;
}

// One stream an op and index, so that the cases of an op do not depend on those of another.
CountedRandom Stream(uint64_t seed, int op, int index) {
  return CountedRandom(seed * 0x10001 + uint64_t(op) * 0x1000000 + uint64_t(index));
}

}  // namespace

std::vector<LinearParams::Adapter> RandomAdapters(CountedRandom& random, int least, int64_t rows) {
  const int count = std::max(least, random.Pick({0, 1, 1, 1, 2, 3}));
  int64_t first = 0;
  const bool ranges = count > 1 ? random.Chance(0.8) : random.Chance(0.3);
  const bool overlap = random.Chance(0.2);
  std::vector<LinearParams::Adapter> adapters;
  for (int i = 0; i < count; ++i) {
    LinearParams::Adapter& a = adapters.emplace_back(RandomAdapter(random));
    if (!ranges) continue;
    a.first = overlap ? random.Below(rows + 1) : first;
    a.end = a.first + random.Below(rows - a.first + 1);
    if (!overlap && i + 1 == count) a.end = rows;
    first = a.end;
  }
  return adapters;
}

QuantizedTensor NewQuantized(OperandMemory& memory, int64_t rows, int64_t cols,
                             const quant::QuantSpec& spec) {
  const int64_t n = rows * cols;
  std::vector<float> w(n);
  for (float& v : w) v = float(memory.random().Normal() / std::sqrt(double(cols) + 1));
  QuantizedTensor q;
  q.spec = spec;
  const Tensor codes = memory.NewRow(DType::kU8, spec.CodeBytes(n));
  quant::QuantizedView view{.codes = codes.Row<uint8_t>(0)};
  q.codes = codes;
  if (spec.double_quant) {
    const Tensor absmax = memory.NewRow(DType::kU8, spec.BlockCount(n));
    const Tensor nested = memory.NewRow(DType::kF32, spec.GroupCount(n));
    const Tensor offset = memory.NewF32(0), map = memory.NewRow(DType::kF32, 256);
    std::copy(quant::SignedDynamicMap().begin(), quant::SignedDynamicMap().end(),
              map.Row<float>(0));
    view.absmax_u8 = absmax.Row<uint8_t>(0);
    view.nested_absmax = nested.Row<float>(0);
    view.nested_offset = offset.Row<float>(0);
    q.absmax = absmax, q.nested_absmax = nested, q.offset = offset, q.map = map;
  } else {
    const Tensor absmax = memory.NewRow(DType::kF32, spec.BlockCount(n));
    view.absmax_f32 = absmax.Row<float>(0);
    q.absmax = absmax;
  }
  if (n > 0 && !quant::QuantizeReference(w.data(), n, spec, view).ok()) std::abort();
  return q;
}

FirstProduct NewFirstProduct(OperandMemory& memory, const LinearParams& p,
                             const LinearParams::Adapter& adapter) {
  return {.a = NewNormal(memory, p.x, adapter.rank, p.in, 1 / std::sqrt(double(p.in) + 1)),
          .rows = NewSegmentRows(memory, adapter),
          .dropout = NewDropout(memory, adapter),
          .low = memory.New(p.x, p.rows, adapter.rank)};
}

OpCase<LinearForward> MakeLinearForward(const LinearParams& p) {
  auto memory = NewMemory(p);
  LinearForward op;
  op.x = NewWithTail(*memory, p, p.in, 1, &op.tail);
  op.base = NewBase(*memory, p);
  if (p.bias) {
    const Tensor bias = memory->NewRow(p.bias_type, p.out);
    FillNormal(memory->random(), bias, 1);
    op.bias = bias;
  }
  op.live_rows = NewLiveRows(*memory, p.live);
  for (const LinearParams::Adapter& a : p.adapters) {
    op.adapters.push_back(NewSegment(*memory, p, a));
    if (a.given) op.adapters.back().given_low = NewInSegment(*memory, p, a);
    op.low.push_back(a.given ? Tensor{} : memory->New(p.x, p.rows, a.rank));
  }
  op.y = memory->New(p.y, p.rows, p.out);
  return {Describe(p), memory, op};
}

OpCase<LinearBackwardInput> MakeLinearBackwardInput(const LinearParams& p) {
  auto memory = NewMemory(p);
  LinearBackwardInput op;
  op.dy = NewWithTail(*memory, p, p.out, 0.3, &op.tail);
  op.base = NewBase(*memory, p);
  op.live_rows = NewLiveRows(*memory, p.live);
  for (const LinearParams::Adapter& a : p.adapters) {
    op.adapters.push_back(NewSegment(*memory, p, a));
    op.up.push_back(memory->New(p.x, p.rows, a.rank));
  }
  op.accumulate = p.accumulate;
  if (p.want_dx) {
    op.dx = p.accumulate ? NewNormal(*memory, p.x, p.rows, p.in, 1, Live(p))
                         : memory->New(p.x, p.rows, p.in);
  }
  return {Describe(p), memory, op};
}

OpCase<LinearBackwardAdapter> MakeLinearBackwardAdapter(const LinearParams& p) {
  auto memory = NewMemory(p);
  const LinearParams::Adapter& a = p.adapters.at(0);
  LinearBackwardAdapter op;
  op.x = NewNormal(*memory, p.x, p.rows, p.in, 1, Live(p));
  op.dy = NewNormal(*memory, p.x, p.rows, p.out, 0.3, Live(p));
  op.low = NewInSegment(*memory, p, a);
  op.up = NewInSegment(*memory, p, a);
  op.live_rows = NewLiveRows(*memory, p.live);
  op.rows = NewSegmentRows(*memory, a);
  op.scale = a.scale;
  op.dropout = NewDropout(*memory, a);
  op.accumulate = p.accumulate;
  op.da = memory->New(DType::kF32, a.rank, p.in);
  op.db = memory->New(DType::kF32, p.out, a.rank);
  if (p.accumulate) {
    FillNormal(memory->random(), op.da, 1);
    FillNormal(memory->random(), op.db, 1);
  }
  return {Describe(p), memory, op};
}

OpCase<LinearBackwardWeight> MakeLinearBackwardWeight(const LinearParams& p) {
  auto memory = NewMemory(p);
  LinearBackwardWeight op;
  op.x = NewNormal(*memory, p.x, p.rows, p.in, 1, Live(p));
  op.dy = NewNormal(*memory, p.x, p.rows, p.out, 0.3, Live(p));
  op.live_rows = NewLiveRows(*memory, p.live);
  op.accumulate = p.accumulate;
  op.dweight = memory->New(DType::kF32, p.out, p.in);
  if (p.bias) op.dbias = memory->NewRow(DType::kF32, p.out);
  if (p.accumulate) {
    FillNormal(memory->random(), op.dweight, 1);
    if (p.bias) FillNormal(memory->random(), op.dbias, 1);
  }
  return {Describe(p), memory, op};
}

OpCase<LinearCrossEntropy> MakeLinearCrossEntropy(const CrossEntropyParams& p) {
  auto memory = NewMemory(p.head);
  LinearCrossEntropy op;
  op.h = NewNormal(*memory, p.head.x, p.head.rows, p.head.in, 2, Live(p.head));
  op.head = NewBase(*memory, p.head);
  const Tensor rows = memory->New(DType::kI32, p.capacity, 1);
  const Tensor targets = memory->New(DType::kI32, p.capacity, 1);
  // `trained` ascending rows out of the live ones, by selection sampling.
  int64_t chosen = 0;
  for (int64_t t = 0; t < Live(p.head) && chosen < p.trained; ++t) {
    const double wanted = double(p.trained - chosen) / double(Live(p.head) - t);
    if (memory->random().Chance(wanted)) rows.Row<int32_t>(chosen++)[0] = int32_t(t);
  }
  FillIntegers(memory->random(), targets, 0, std::max<int64_t>(1, p.head.out), chosen);
  op.rows = rows, op.targets = targets;
  op.count = memory->NewI32(int32_t(chosen));
  op.live_rows = NewLiveRows(*memory, p.head.live);
  op.chunk_rows = p.chunk_rows;
  op.softcap = p.softcap;
  op.accumulate_loss = op.accumulate_dhead = p.accumulate;
  op.loss = memory->New(DType::kF64, p.segments, 1);
  if (p.accumulate) {
    for (int64_t s = 0; s < p.segments; ++s) *op.loss.Row<double>(s) = 3.25 - double(s);
  }
  if (p.segments > 1) {
    const Tensor segments = memory->New(DType::kI32, p.segments, 2);
    int32_t first = 0;
    for (int64_t s = 0; s < p.segments; ++s) {
      const bool last = s + 1 == p.segments;
      int32_t* const range = segments.Row<int32_t>(s);
      range[0] = first;
      range[1] = first =
          int32_t(last ? chosen : first + memory->random().Below(chosen - first + 1));
    }
    op.segments = segments;
  }
  if (p.row_loss) op.row_loss = memory->New(DType::kF32, p.capacity, 1);
  if (p.correct) {
    op.correct = memory->New(DType::kI32, p.segments, 1);
    FillIntegers(memory->random(), op.correct, 0, 100);
  }
  if (p.dh) op.dh = memory->New(p.head.x, p.head.rows, p.head.in);
  if (p.dhead) {
    op.dhead = memory->New(DType::kF32, p.head.out, p.head.in);
    if (p.accumulate) FillNormal(memory->random(), op.dhead, 1);
  }
  return {absl::StrCat(Describe(p.head), " trained ", chosen, " of ", p.capacity, " chunk ",
                       p.chunk_rows, " softcap ", p.softcap,
                       p.segments > 1 ? absl::StrCat(" segments ", p.segments) : "",
                       p.row_loss ? " row_loss" : "", p.correct ? " correct" : "",
                       p.dh ? " dh" : "", p.dhead ? " dhead" : ""),
          memory, op};
}

int OpCases<LinearForward>::Count() { return 260; }
OpCase<LinearForward> OpCases<LinearForward>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 1, index);
  LinearParams p = RandomParams(random, index, seed);
  p.adapters = RandomAdapters(random, 0, p.rows);
  for (LinearParams::Adapter& a : p.adapters) a.given = random.Chance(0.2);
  return MakeLinearForward(p);
}

int OpCases<LinearBackwardInput>::Count() { return 260; }
OpCase<LinearBackwardInput> OpCases<LinearBackwardInput>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 2, index);
  LinearParams p = RandomParams(random, index, seed);
  p.adapters = RandomAdapters(random, 0, p.rows);
  p.want_dx = p.adapters.empty() || random.Chance(0.9);
  return MakeLinearBackwardInput(p);
}

int OpCases<LinearBackwardAdapter>::Count() { return 240; }
OpCase<LinearBackwardAdapter> OpCases<LinearBackwardAdapter>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 3, index);
  LinearParams p = RandomParams(random, index, seed);
  p.adapters = RandomAdapters(random, 1, p.rows);
  return MakeLinearBackwardAdapter(p);
}

int OpCases<LinearBackwardWeight>::Count() { return 220; }
OpCase<LinearBackwardWeight> OpCases<LinearBackwardWeight>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 4, index);
  return MakeLinearBackwardWeight(RandomParams(random, index, seed));
}

int OpCases<LinearCrossEntropy>::Count() { return 220; }
OpCase<LinearCrossEntropy> OpCases<LinearCrossEntropy>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 5, index);
  CrossEntropyParams p;
  p.head = RandomParams(random, index, seed);
  p.head.rows = std::min<int64_t>(p.head.rows, 96);
  if (p.head.live > p.head.rows) p.head.live = p.head.rows;
  p.head.bias = false;
  p.head.y = p.head.x;
  if (p.head.base == LinearBase::Kind::kNone) p.head.base = LinearBase::Kind::kDense;
  const int64_t live = Live(p.head);
  p.capacity = random.Chance(0.3) ? p.head.rows : random.Below(p.head.rows + 1);
  p.trained = random.Below(std::min(live, p.capacity) + 1);
  if (random.Chance(0.3)) p.trained = std::min(live, p.capacity);
  p.chunk_rows = random.Pick<int64_t>({1, 3, 8, 16, 64, 128});
  p.softcap = random.Pick({0.0f, 0.0f, 30.0f, 5.0f});
  p.accumulate = random.Chance(0.5);
  p.row_loss = random.Chance(0.5);
  p.correct = random.Chance(0.5);
  p.segments = random.Pick<int64_t>({1, 1, 2, 3, 5});
  p.dh = random.Chance(0.8);
  p.dhead = p.dh && p.head.base == LinearBase::Kind::kDense && random.Chance(0.5);
  return MakeLinearCrossEntropy(p);
}

}  // namespace qlora::kernels::optest
