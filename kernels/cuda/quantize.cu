#include <algorithm>

#include "kernels/cuda/dynamic_code.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/quantize.h"
#include "quant/codebook.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerLane = 8;  // elements a lane encodes at a time: 4 bytes of codes
constexpr int kGroup = quant::QuantSpec::kGroupSize;
constexpr int kMeanChunk = quant::QuantSpec::kMeanChunkBlocks;
constexpr float kSmallestNormal = 0x1p-126f;

// quant::EncodeRule as a kernel's argument.
struct Rule {
  float thresholds[16];  // the last is +infinity
  uint8_t positive[16], negative[16];
  bool on_magnitude;
};

Rule RuleArgument(quant::QuantType type) {
  const quant::EncodeRule& from = quant::RuleOf(type);
  Rule rule = {};
  for (int i = 0; i < 15; ++i) {
    rule.thresholds[i] = i < from.count ? from.thresholds[i] : 1.0f / 0.0f;
  }
  std::copy(from.positive.begin(), from.positive.end(), rule.positive);
  std::copy(from.negative.begin(), from.negative.end(), rule.negative);
  rule.on_magnitude = from.on_magnitude;
  return rule;
}

// Tables of a rule, one copy a lane as in decode.h: thresholds and codes are looked up at places
// that differ from lane to lane.
struct RuleTables {
  gpu::Shared<float> thresholds;  // [15·32]
  gpu::Shared<uint32_t> codes;    // [16·32]: positive | negative << 8
  bool on_magnitude;

  QLORA_DEVICE uint32_t Encode(float x) const {
    const float m = on_magnitude ? fabsf(x) : x;
    // Thresholds below m; false for a NaN throughout, which so gets rank 0.
    int rank = 0;
    QLORA_UNROLL
    for (int step = 8; step > 0; step /= 2) {
      const float threshold = thresholds[(rank + step - 1) * 32 + gpu::Lane()];
      if (m > threshold) rank += step;
    }
    const uint32_t both = codes[rank * 32 + gpu::Lane()];
    return x < 0.0f ? both >> 8 : both & 0xffu;
  }
};
constexpr int kRuleBytes = (15 + 16) * 32 * 4;

QLORA_DEVICE RuleTables FillRule(const Rule& rule, gpu::SharedMemory& memory) {
  RuleTables tables = {memory.Take<float>(15 * 32), memory.Take<uint32_t>(16 * 32),
                       rule.on_magnitude};
  for (int i = gpu::ThreadX(); i < 16 * 32; i += kThreads) {
    if (i < 15 * 32) tables.thresholds[i] = rule.thresholds[i / 32];
    tables.codes[i] = uint32_t(rule.positive[i / 32]) | uint32_t(rule.negative[i / 32]) << 8;
  }
  return tables;
}

struct BlockArguments {
  int64_t n;
  int log2_block;
  int lanes;  // that share a block: up to 32, each with kPerLane elements at a time
  uint8_t* codes;
  float* absmax;
  int32_t* nonfinite;
};

template <class T>
QLORA_DEVICE void LoadEight(const T* w, int64_t first, int64_t n, bool aligned, float* x) {
  if (aligned && first + kPerLane <= n) {
    alignas(16) T raw[kPerLane];
    gpu::Words4* to = reinterpret_cast<gpu::Words4*>(raw);
    const gpu::Words4* from = reinterpret_cast<const gpu::Words4*>(w + first);
    QLORA_UNROLL
    for (int i = 0; i < int(kPerLane * sizeof(T) / 16); ++i) to[i] = from[i];
    QLORA_UNROLL
    for (int i = 0; i < kPerLane; ++i) x[i] = Widen(raw[i]);
  } else {
    for (int i = 0; i < kPerLane; ++i) x[i] = first + i < n ? Widen(w[first + i]) : 0.0f;
  }
}

// Scale and codes of every block. A block of b elements is shared by b / 8 lanes, a warp at most;
// larger blocks are read twice, the second time from the cache.
template <class T>
QLORA_KERNEL void QuantizeBlocks(const T* w, bool aligned, Rule rule, BlockArguments args) {
  gpu::SharedMemory memory;
  const RuleTables tables = FillRule(rule, memory);
  gpu::SyncThreads();
  const int64_t thread = gpu::BlockX() * kThreads + gpu::ThreadX();
  const int64_t block = thread / args.lanes;
  const int lane = int(thread % args.lanes);
  const int64_t begin = block << args.log2_block;
  const int64_t end = begin + (int64_t{1} << args.log2_block);
  const int stride = args.lanes * kPerLane;

  float x[kPerLane], largest = 0.0f;
  int bad = 0;
  for (int64_t i = begin + lane * kPerLane; i < end; i += stride) {
    LoadEight(w, i, args.n, aligned, x);
    QLORA_UNROLL
    for (int j = 0; j < kPerLane; ++j) {
      largest = fmaxf(largest, fabsf(x[j]));
      bad += (gpu::BitsOf(x[j]) & 0x7fffffffu) >= 0x7f800000u ? 1 : 0;
    }
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    const float other = gpu::ShuffleXor(largest, mask);
    if (mask < args.lanes) largest = fmaxf(largest, other);
  }
  if (largest < kSmallestNormal) largest = 0.0f;
  if (bad > 0) gpu::AtomicAdd(args.nonfinite, bad);
  if (begin >= args.n) return;
  if (lane == 0) args.absmax[block] = largest;
  const float reciprocal = 1.0f / largest;
  for (int64_t i = begin + lane * kPerLane; i < end && i < args.n; i += stride) {
    if (stride < (1 << args.log2_block)) LoadEight(w, i, args.n, aligned, x);
    // Behind the tensor's end stand zeros, encoded like the rest of the block.
    uint32_t bytes = 0;
    QLORA_UNROLL
    for (int j = 0; j < kPerLane; ++j) {
      const uint32_t code = largest == 0.0f ? 0u : tables.Encode(x[j] * reciprocal);
      bytes |= code << (j / 2 * 8 + (j % 2 == 0 ? 4 : 0));
    }
    for (int j = 0; j < kPerLane / 2; ++j) {
      if (i + 2 * j < args.n) args.codes[i / 2 + j] = uint8_t(bytes >> (8 * j));
    }
  }
}

QLORA_KERNEL void ClearCount(int32_t* nonfinite) {
  if (gpu::ThreadX() == 0) *nonfinite = 0;
}

// Sum of the scales of one chunk of blocks, in index order: the order is part of the format's
// definition. The block stages them, one thread adds.
QLORA_KERNEL void SumScales(const float* absmax, int64_t blocks, double* sums) {
  gpu::SharedMemory memory;
  gpu::Shared<float> stage = memory.Take<float>(kMeanChunk);
  const int64_t first = gpu::BlockX() * kMeanChunk;
  const int count = int(blocks - first < kMeanChunk ? blocks - first : kMeanChunk);
  for (int i = gpu::ThreadX(); i < count; i += kThreads) stage[i] = absmax[first + i];
  gpu::SyncThreads();
  if (gpu::ThreadX() != 0) return;
  double sum = 0.0;
  for (int i = 0; i < count; ++i) {
    const float scale = stage[i];
    sum += double(scale);
  }
  sums[gpu::BlockX()] = sum;
}

QLORA_KERNEL void MeanScale(const double* sums, int64_t chunks, int64_t blocks, float* offset) {
  if (gpu::ThreadX() != 0) return;
  double total = 0.0;
  for (int64_t i = 0; i < chunks; ++i) total += sums[i];
  *offset = blocks == 0 ? 0.0f : float(total / double(blocks));
}

// The second level: one CUDA block a group of 256 scales, one thread a scale.
QLORA_KERNEL void EncodeScales(const float* absmax, int64_t blocks, CodeTable next,
                               const float* offset, uint8_t* codes, float* nested_absmax) {
  static_assert(kThreads == kGroup);
  gpu::SharedMemory memory;
  gpu::Shared<float> borders = memory.Take<float>(256), largest = memory.Take<float>(kThreads / 32);
  FillTable(next, borders);
  const int64_t i = gpu::BlockX() * kGroup + gpu::ThreadX();
  const float d = i < blocks ? absmax[i] - *offset : 0.0f;
  float nested = fabsf(d);
  for (int mask = 16; mask > 0; mask /= 2) nested = fmaxf(nested, gpu::ShuffleXor(nested, mask));
  if (gpu::Lane() == 0) largest[gpu::Warp()] = nested;
  gpu::SyncThreads();
  for (int warp = 0; warp < kThreads / 32; ++warp) {
    const float other = largest[warp];
    nested = fmaxf(nested, other);
  }
  if (nested < kSmallestNormal) nested = 0.0f;
  if (gpu::ThreadX() == 0) nested_absmax[gpu::BlockX()] = nested;
  if (i >= blocks) return;
  codes[i] = nested == 0.0f ? uint8_t{0} : EncodeDynamic(borders, d * (1.0f / nested));
}

}  // namespace

void Run(const Quantize& op, const Context& context) {
  const int64_t n = op.w.Count(), blocks = op.spec.BlockCount(n);
  const QuantizeLayout at = LayoutOf(op);
  uint8_t* workspace = static_cast<uint8_t*>(op.workspace.data);
  double* sums = reinterpret_cast<double*>(workspace);
  float* absmax = op.spec.double_quant ? reinterpret_cast<float*>(workspace + at.absmax_at)
                                       : static_cast<float*>(op.out.absmax.data);
  int32_t* nonfinite = op.nonfinite ? static_cast<int32_t*>(op.nonfinite.data)
                                    : reinterpret_cast<int32_t*>(workspace + at.count_at);
  gpu::Launcher& launcher = context.launcher;
  gpu::Launch(launcher, Quantize::kName, &ClearCount, {.threads = 32}, nonfinite);
  const int lanes = std::min(32, op.spec.block_size / kPerLane);
  const BlockArguments args = {n,      std::countr_zero(unsigned(op.spec.block_size)),
                               lanes,  static_cast<uint8_t*>(op.out.codes.data),
                               absmax, nonfinite};
  DispatchWeight(op.w.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    gpu::Launch(launcher, Quantize::kName, &QuantizeBlocks<T>,
                {.blocks_x = CeilDiv(blocks * lanes, kThreads),
                 .threads = kThreads,
                 .shared_bytes = kRuleBytes},
                static_cast<const T*>(op.w.data), IsAligned(op.w, 16), RuleArgument(op.spec.type),
                args);
  });
  if (!op.spec.double_quant) return;
  float* offset = static_cast<float*>(op.out.offset.data);
  const int64_t chunks = CeilDiv(blocks, kMeanChunk);
  gpu::Launch(launcher, Quantize::kName, &SumScales,
              {.blocks_x = chunks, .threads = kThreads, .shared_bytes = kMeanChunk * 4},
              static_cast<const float*>(absmax), blocks, sums);
  gpu::Launch(launcher, Quantize::kName, &MeanScale, {.threads = 32},
              static_cast<const double*>(sums), chunks, blocks, offset);
  gpu::Launch(launcher, Quantize::kName, &EncodeScales,
              {.blocks_x = CeilDiv(blocks, kGroup),
               .threads = kThreads,
               .shared_bytes = (256 + kThreads / 32) * 4},
              static_cast<const float*>(absmax), blocks, TableOf(SignedDynamicCode().next),
              static_cast<const float*>(offset), static_cast<uint8_t*>(op.out.absmax.data),
              static_cast<float*>(op.out.nested_absmax.data));
}

}  // namespace qlora::kernels::cuda
