// Cases of the update (AdamW, reductions, gradient scale) and of the 4-bit formats.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "quant/dynamic_map.h"
#include "tests/kernels/op_cases.h"

namespace qlora::kernels::optest {
namespace {

std::shared_ptr<OperandMemory> NewMemory(uint64_t seed, bool pitched) {
  return std::make_shared<OperandMemory>(seed, pitched);
}

Tensor NewNormal(OperandMemory& memory, DType dtype, int64_t n, double deviation) {
  const Tensor t = memory.NewRow(dtype, n);
  FillNormal(memory.random(), t, deviation);
  return t;
}

// Element i of a view's rows one behind the other.
void PutAt(const Tensor& t, int64_t i, double value) { Put(t, i / t.cols, i % t.cols, value); }

void SpoilSome(OperandMemory& memory, const Tensor& t, int64_t count) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < count && t.Count() > 0; ++i) {
    const int64_t at = memory.random().Below(t.Count());
    PutAt(t, at,
          memory.random().Pick({kInfinity, -kInfinity, std::numeric_limits<double>::quiet_NaN()}));
  }
}

UpdateParams RandomParams(CountedRandom& random, int index, uint64_t seed) {
  UpdateParams p;
  p.seed = seed * 1000003 + uint64_t(index);
  p.n =
      random.Pick<int64_t>({0,   1,   2,   3,   7,   8,   15,  16,  17,   31,   33,   63,   64,  65,
                            127, 129, 255, 256, 257, 511, 512, 513, 1000, 1024, 1025, 2047, 4099});
  p.pitched = index % 3 != 0;
  return p;
}

CountedRandom Stream(uint64_t seed, int op, int index) {
  return CountedRandom(seed * 0x10001 + uint64_t(op) * 0x1000000 + uint64_t(index));
}

}  // namespace

OpCase<AdamW> MakeAdamW(const UpdateParams& p) {
  auto memory = NewMemory(p.seed, p.pitched);
  CountedRandom& random = memory->random();
  const int64_t blocks = (p.n + kParameterBlock - 1) / kParameterBlock;
  const int64_t rows = p.window_blocks > 0 ? (blocks + p.window_blocks - 1) / p.window_blocks : 1;
  const auto new_state = [&](DType dtype) {
    return p.window_blocks > 0 ? memory->New(dtype, rows, p.window_blocks * kParameterBlock)
                               : memory->NewRow(dtype, p.n);
  };
  const auto new_scales = [&] {
    return p.window_blocks > 0 ? memory->New(DType::kF32, rows, p.window_blocks)
                               : memory->NewRow(DType::kF32, blocks);
  };
  AdamW op;
  op.first_block = p.first_block;
  const Tensor gradient = NewNormal(*memory, DType::kF32, p.n, 5);
  // Whole blocks without gradient, as the embedding rows of tokens that did not occur.
  for (int64_t i = 0; i < p.n; ++i) {
    if (i / kParameterBlock % 3 == 2) Put(gradient, 0, i, 0);
  }
  if (p.skip) SpoilSome(*memory, gradient, 3);
  op.gradient = gradient;
  const Tensor segments = memory->NewContiguous(DType::kU8, p.segments, sizeof(ParameterSegment));
  int64_t first_block = 0;
  for (int s = 0; s < p.segments; ++s) {
    const ParameterSegment segment{int32_t(first_block), random.Pick({1.0f, 1.0f, 16.0f, 0.1f}),
                                   random.Pick({0.0f, 0.01f, 0.1f}),
                                   int32_t(random.Below(p.adapters))};
    std::memcpy(segments.Row<uint8_t>(s), &segment, sizeof segment);
    first_block += 1 + random.Below(2 + (p.first_block + blocks) / p.segments);
  }
  op.segments = segments;
  const Tensor scalars = memory->New(DType::kF32, p.adapters, UpdateScalars::kCount);
  const Tensor scale = memory->New(DType::kF32, p.adapters, 1);
  for (int a = 0; a < p.adapters; ++a) {
    const double t = p.fresh ? 1.0 : double(random.Pick({2, 10, 1000}));
    Put(scalars, a, UpdateScalars::kLearningRate, random.Pick({0.0, 2e-4, 1e-2}));
    Put(scalars, a, UpdateScalars::kBiasCorrection1, 1 - std::pow(double(op.beta1), t));
    Put(scalars, a, UpdateScalars::kBiasCorrection2, 1 - std::pow(double(op.beta2), t));
    Put(scale, a, 0, random.Pick({1.0, 0.001, 0.37}));
  }
  op.scalars = scalars, op.gradient_scale = scale;
  op.skip = memory->NewI32(p.skip ? 1 : 0);
  op.parameter = p.whole_master ? memory->NewRow(DType::kF32, p.n) : new_state(DType::kF32);
  FillNormal(random, op.parameter, 0.1);
  if (p.coded_states) {
    op.m = new_state(DType::kU8);
    op.v = new_state(DType::kU8);
    op.m_absmax = new_scales();
    op.v_absmax = new_scales();
    if (p.fresh) {
      FillValue(op.m, quant::EncodeDynamic(quant::SignedDynamicMap().data(), 0.0f));
      FillValue(op.v, 0);
      FillValue(op.m_absmax, 0);
      FillValue(op.v_absmax, 0);
    } else {
      FillIntegers(random, op.m, 0, 256);
      FillIntegers(random, op.v, 0, 256);
      for (int64_t b = 0; b < blocks; ++b) {
        PutAt(op.m_absmax, b, 0.01 + 0.1 * random.Uniform());
        PutAt(op.v_absmax, b, 0.001 + 0.01 * random.Uniform());
      }
    }
  } else {
    op.m = new_state(DType::kF32);
    FillNormal(random, op.m, p.fresh ? 0 : 0.1);
    op.v = new_state(DType::kF32);
    for (int64_t i = 0; i < p.n; ++i) {
      PutAt(op.v, i, p.fresh ? 0 : std::abs(0.01 * random.Normal() * random.Normal()));
    }
  }
  if (p.compute) op.compute = memory->NewRow(DType::kBf16, p.n);
  return {absl::StrCat("n ", p.n, p.coded_states ? " 8-bit" : " f32", " block ", p.first_block,
                       " segments ", p.segments, " adapters ", p.adapters, p.skip ? " skip" : "",
                       p.fresh ? " fresh" : "", p.compute ? " compute" : "", " windows of ",
                       p.window_blocks, p.whole_master ? ", master whole" : "",
                       p.pitched ? " misaligned" : "", " seed ", p.seed),
          memory, op};
}

OpCase<NormAndFinite> MakeNormAndFinite(const UpdateParams& p) {
  auto memory = NewMemory(p.seed, p.pitched);
  NormAndFinite op;
  const Tensor x = NewNormal(*memory, p.dtype, p.n, std::pow(10.0, double(p.seed % 7) * 3 - 9));
  SpoilSome(*memory, x, p.nonfinite);
  op.x = x;
  op.sum_of_squares = memory->NewRow(DType::kF64, 1);
  op.nonfinite = memory->NewRow(DType::kI32, 1);
  return {
      absl::StrCat("n ", p.n, " ", NameOf(p.dtype), " nonfinite ", p.nonfinite, " seed ", p.seed),
      memory, op};
}

OpCase<ContentHash> MakeContentHash(const UpdateParams& p) {
  auto memory = NewMemory(p.seed, p.pitched);
  ContentHash op;
  op.x = memory->NewRow(p.dtype, p.n);  // any bytes will do
  op.hash = memory->NewRow(DType::kU64, 1);
  return {absl::StrCat("n ", p.n, " ", NameOf(p.dtype), " seed ", p.seed), memory, op};
}

OpCase<AddGradient> MakeAddGradient(const UpdateParams& p) {
  auto memory = NewMemory(p.seed, p.pitched);
  AddGradient op;
  op.from = NewNormal(*memory, p.dtype, p.n, 1);
  op.into = NewNormal(*memory, p.dtype, p.n, 1);
  return {absl::StrCat("n ", p.n, " ", NameOf(p.dtype), p.pitched ? " misaligned" : "", " seed ",
                       p.seed),
          memory, op};
}

OpCase<Zero> MakeZero(const UpdateParams& p) {
  auto memory = NewMemory(p.seed, p.pitched);
  Zero op;
  op.x = memory->New(p.dtype, p.rows, p.n);
  return {absl::StrCat(p.rows, "×", p.n, " ", NameOf(p.dtype), p.pitched ? " pitched" : "",
                       " seed ", p.seed),
          memory, op};
}

OpCase<GradientScale> MakeGradientScale(const UpdateParams& p) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  auto memory = NewMemory(p.seed, p.pitched);
  CountedRandom& random = memory->random();
  GradientScale op;
  op.sum_of_squares = memory->NewF64(
      random.Pick({0.0, 1e-12, 1.0, 3.5e4, 1e12, p.nonfinite == 2 ? kInfinity : 7.0}));
  if (p.nonfinite == 2) op.sum_of_squares = memory->NewF64(kInfinity);
  op.nonfinite = memory->NewI32(p.nonfinite == 1 ? int32_t(1 + random.Below(5)) : 0);
  op.loss = memory->NewF64(p.nonfinite == 3   ? std::numeric_limits<double>::quiet_NaN()
                           : p.nonfinite == 4 ? -kInfinity
                                              : 1e4 * random.Uniform());
  op.inverse_tokens = memory->NewF32(1.0f / float(1 + random.Below(20000)));
  op.max_norm = p.max_norm;
  op.gradient_norm = memory->NewRow(DType::kF32, 1);
  op.gradient_scale = memory->NewRow(DType::kF32, 1);
  op.skip = memory->NewRow(DType::kI32, 1);
  return {absl::StrCat("max_norm ", p.max_norm, " fault ", p.nonfinite, " seed ", p.seed), memory,
          op};
}

namespace {

double ContentOf(OperandMemory& memory, const QuantizeParams& p, int64_t i) {
  using Contents = QuantizeParams::Contents;
  const double normal = 0.02 * memory.random().Normal();
  switch (p.contents) {
    case Contents::kZero:
      return 0.0;
    case Contents::kZeroBlocks:
      return i / p.spec.block_size % 2 == 0 ? 0.0 : normal;
    case Contents::kTies: {
      // absmax 1 in every block, so that thresholds and code values themselves are encoded.
      const quant::EncodeRule& rule = quant::RuleOf(p.spec.type);
      if (i % p.spec.block_size == 0) return 1.0;
      const double value = i % 2 ? rule.thresholds[memory.random().Below(rule.count)]
                                 : quant::CodeValues(p.spec.type)[memory.random().Below(16)];
      return memory.random().Chance(0.5) ? value : -value;
    }
    case Contents::kTiny:
      return normal * 1e-37;
    case Contents::kHuge:
      return normal * 1e38;
    default:
      return normal;
  }
}

QuantizedOutput NewOutput(OperandMemory& memory, int64_t n, const quant::QuantSpec& spec) {
  QuantizedOutput out;
  out.codes = memory.NewRow(DType::kU8, spec.CodeBytes(n));
  out.absmax = memory.NewRow(spec.double_quant ? DType::kU8 : DType::kF32, spec.BlockCount(n));
  if (spec.double_quant) {
    out.nested_absmax = memory.NewRow(DType::kF32, spec.GroupCount(n));
    out.offset = memory.NewRow(DType::kF32, 1);
  }
  return out;
}

std::string Describe(const QuantizeParams& p) {
  constexpr const char* kContents[] = {"normal", "zero", "zero blocks", "ties",
                                       "tiny",   "huge", "nonfinite"};
  return absl::StrCat(p.rows, "×", p.cols, " ", NameOf(p.dtype), " ",
                      std::string(quant::QuantTypeName(p.spec.type)), "/", p.spec.block_size,
                      p.spec.double_quant ? " dq " : " ", kContents[int(p.contents)], " seed ",
                      p.seed);
}

QuantizeParams RandomQuantizeParams(CountedRandom& random, int index, uint64_t seed) {
  QuantizeParams p;
  p.seed = seed * 1000003 + uint64_t(index);
  p.rows = random.Pick<int64_t>({0, 1, 1, 2, 3, 7, 8, 17, 31, 64, 65});
  p.cols = random.Pick<int64_t>({1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 257, 513});
  // More than one group of 256 blocks, more than one chunk of 4096.
  if (index % 20 == 19) p.rows = 129, p.cols = random.Pick<int64_t>({255, 256, 513, 1031});
  p.dtype = random.Pick({DType::kBf16, DType::kF16, DType::kF32});
  p.spec.type =
      random.Pick({quant::QuantType::kNf4, quant::QuantType::kNf4, quant::QuantType::kFp4E2M1,
                   quant::QuantType::kFp4E3M0, quant::QuantType::kInt4});
  p.spec.block_size = random.Pick({32, 64, 64, 64, 128, 256, 512, 1024, 2048, 4096});
  p.spec.double_quant = random.Chance(0.6);
  p.pitched = index % 3 != 0;
  return p;
}

}  // namespace

OpCase<Quantize> MakeQuantize(const QuantizeParams& p) {
  auto memory = NewMemory(p.seed, p.pitched);
  Quantize op;
  const Tensor w = memory->NewContiguous(p.dtype, p.rows, p.cols);
  for (int64_t i = 0; i < w.Count(); ++i) {
    Put(w, i / p.cols, i % p.cols, ContentOf(*memory, p, i));
  }
  if (p.contents == QuantizeParams::Contents::kNonfinite) SpoilSome(*memory, w, 3);
  op.w = w;
  op.spec = p.spec;
  op.out = NewOutput(*memory, w.Count(), p.spec);
  op.nonfinite = memory->NewRow(DType::kI32, 1);
  return {Describe(p), memory, op};
}

OpCase<Dequantize> MakeDequantize(const QuantizeParams& p) {
  auto memory = NewMemory(p.seed, p.pitched);
  Dequantize op;
  op.q = NewQuantized(*memory, p.rows, p.cols, p.spec);
  if (p.spec.double_quant && p.seed % 3 == 0) {
    // A checkpoint's own map counts, not ours.
    float* map = const_cast<float*>(op.q.map.Row<float>(0));
    for (int i = 0; i < quant::kDynamicMapSize; ++i) map[i] = float(i - 127) / 128.0f;
  }
  op.w = memory->NewContiguous(p.dtype, p.rows, p.cols);
  return {Describe(p), memory, op};
}

OpCase<Pack> MakePack(const QuantizeParams& p) {
  auto memory = NewMemory(p.seed, p.pitched);
  Pack op;
  op.from = NewQuantized(*memory, p.rows, p.cols, p.spec);
  op.rows = p.rows, op.cols = p.cols;
  op.to = NewOutput(*memory, p.rows * p.cols, p.spec);
  return {Describe(p), memory, op};
}

OpCase<Unpack> MakeUnpack(const QuantizeParams& p) {
  const OpCase<Pack> pack = MakePack(p);
  Unpack op;
  op.from = pack.op.from;
  op.rows = p.rows, op.cols = p.cols;
  op.to = pack.op.to;
  return {pack.name, pack.memory, op};
}

int OpCases<AdamW>::Count() { return 300; }
OpCase<AdamW> OpCases<AdamW>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 16, index);
  UpdateParams p = RandomParams(random, index, seed);
  p.coded_states = random.Chance(0.5);
  p.compute = random.Chance(0.7);
  p.skip = random.Chance(0.1);
  p.fresh = random.Chance(0.3);
  p.first_block = random.Pick<int64_t>({0, 0, 1, 5, 1000});
  p.adapters = random.Pick({1, 1, 2, 3});
  p.segments = random.Pick({1, 2, 3, 8});
  p.window_blocks = random.Pick<int64_t>({0, 0, 1, 2, 3, 20});
  p.whole_master = random.Chance(0.3);
  return MakeAdamW(p);
}

int OpCases<NormAndFinite>::Count() { return 220; }
OpCase<NormAndFinite> OpCases<NormAndFinite>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 17, index);
  UpdateParams p = RandomParams(random, index, seed);
  // About the edges of chunks, and several of them.
  if (index % 10 == 9) {
    p.n = random.Pick({kReduceChunk - 1, kReduceChunk, kReduceChunk + 1, 3 * kReduceChunk + 17,
                       7 * kReduceChunk});
  }
  p.dtype = random.Pick({DType::kF32, DType::kBf16});
  p.nonfinite = random.Chance(0.3) ? 1 + random.Below(4) : 0;
  return MakeNormAndFinite(p);
}

int OpCases<ContentHash>::Count() { return 220; }
OpCase<ContentHash> OpCases<ContentHash>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 18, index);
  UpdateParams p = RandomParams(random, index, seed);
  p.dtype = random.Pick({DType::kU8, DType::kBf16, DType::kF32, DType::kI32, DType::kF64});
  if (index % 40 == 39)
    p.n = ((int64_t{1} << 20) * (index / 40 % 3 + 1)) / SizeOf(p.dtype) + index / 40 - 2;
  return MakeContentHash(p);
}

int OpCases<AddGradient>::Count() { return 200; }
OpCase<AddGradient> OpCases<AddGradient>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 19, index);
  UpdateParams p = RandomParams(random, index, seed);
  if (index % 20 == 19) p.n = 70001;
  if (index % 4 == 3) p.dtype = DType::kF64;
  return MakeAddGradient(p);
}

int OpCases<Zero>::Count() { return 200; }
OpCase<Zero> OpCases<Zero>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 20, index);
  UpdateParams p = RandomParams(random, index, seed);
  p.rows = random.Pick<int64_t>({0, 1, 1, 2, 7, 33});
  p.dtype = random.Pick(
      {DType::kU8, DType::kBf16, DType::kF16, DType::kF32, DType::kI32, DType::kF64, DType::kU64});
  return MakeZero(p);
}

int OpCases<GradientScale>::Count() { return 200; }
OpCase<GradientScale> OpCases<GradientScale>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 21, index);
  UpdateParams p = RandomParams(random, index, seed);
  p.max_norm = random.Pick({0.0f, 0.3f, 1.0f, 1000.0f});
  p.nonfinite = index % 3 == 2 ? 1 + index / 3 % 4 : 0;  // which of the four faults
  return MakeGradientScale(p);
}

int OpCases<Quantize>::Count() { return 300; }
OpCase<Quantize> OpCases<Quantize>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 22, index);
  QuantizeParams p = RandomQuantizeParams(random, index, seed);
  using Contents = QuantizeParams::Contents;
  p.contents =
      random.Pick({Contents::kNormal, Contents::kNormal, Contents::kNormal, Contents::kZero,
                   Contents::kZeroBlocks, Contents::kTies, Contents::kTies, Contents::kTiny,
                   Contents::kHuge, Contents::kNonfinite});
  // Half precision has no room for the largest and the smallest numbers.
  if (p.dtype == DType::kF16 && (p.contents == Contents::kTiny || p.contents == Contents::kHuge)) {
    p.contents = Contents::kNormal;
  }
  return MakeQuantize(p);
}

int OpCases<Dequantize>::Count() { return 240; }
OpCase<Dequantize> OpCases<Dequantize>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 23, index);
  return MakeDequantize(RandomQuantizeParams(random, index, seed));
}

int OpCases<Pack>::Count() { return 200; }
OpCase<Pack> OpCases<Pack>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 24, index);
  return MakePack(RandomQuantizeParams(random, index, seed));
}

int OpCases<Unpack>::Count() { return 200; }
OpCase<Unpack> OpCases<Unpack>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 25, index);
  return MakeUnpack(RandomQuantizeParams(random, index, seed));
}

}  // namespace qlora::kernels::optest
