#include <algorithm>
#include <cmath>

#include "kernels/cuda/decode.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/linear_skinny.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kMaxRows = 16;
constexpr int kMaxAdapters = 4;
// Below these, offsets within a block's rows and within x, and numbers of scales, fit 32 bits.
constexpr int64_t kMaxColumns = int64_t{1} << 24, kMaxWeights = int64_t{1} << 36;
constexpr int kBlockSize = 64;        // elements under one scale
constexpr int kTileRows = 8;          // rows of x in one matrix instruction
constexpr int kBlockWeightRows = 32;  // of a thread block: two fragments of 16
constexpr int kStep = 128;            // elements of K that a warp takes at a time
constexpr int kLaneStep = kStep / 4;  // of them one lane decodes: 16 bytes of codes
constexpr int kTableBytes = 256 * 128;
// A lane's 64 bytes of x, 16 bytes apart from the next lane's: eight lanes read 16 bytes each from
// different banks.
constexpr int kStagePitch = kLaneStep * 2 + 16;
constexpr int kStageBytes = 32 * kStagePitch;  // of one tile
constexpr int kPartialPitch = kBlockWeightRows + 4;
constexpr int kLowThreads = 256;

struct SkinnyAdapter {
  const uint16_t* a;  // null where `low` is given
  const uint16_t* b;
  uint16_t* low;
  const int32_t* rows;  // first, end; null: all live rows
  int64_t a_pitch, b_pitch, low_pitch;
  int rank;
  float scale;
  bool wide;  // rows of b and low are read 16 bytes at a time
};
struct SkinnyAdapters {
  SkinnyAdapter at[kMaxAdapters];
  int count;
};

QLORA_DEVICE bool Serves(const SkinnyAdapter& adapter, int row) {
  return adapter.rows == nullptr || (row >= adapter.rows[0] && row < adapter.rows[1]);
}

// Eight products of bf16 pairs, added to `sum`.
QLORA_DEVICE float Dot8(const gpu::Words4& a, const gpu::Words4& b, float sum) {
  QLORA_UNROLL
  for (int i = 0; i < 4; ++i) {
    sum = fmaf(gpu::FloatOf(a.w[i] << 16), gpu::FloatOf(b.w[i] << 16), sum);
    sum = fmaf(gpu::FloatOf(a.w[i] & 0xffff0000u), gpu::FloatOf(b.w[i] & 0xffff0000u), sum);
  }
  return sum;
}

// ---- low = x · Aᵀ: one block a row of A, so that x's rows are read from the caches

QLORA_KERNEL void SkinnyLowKernel(ConstTensor x, LiveRows live_rows, SkinnyAdapters adapters) {
  const SkinnyAdapter& adapter = adapters.at[gpu::BlockY()];
  const int64_t rank_row = gpu::BlockX();
  if (rank_row >= adapter.rank || adapter.a == nullptr) return;
  const int live = int(LiveRowCount(live_rows, x.rows));
  if (live == 0) return;
  const gpu::Words4* a =
      reinterpret_cast<const gpu::Words4*>(adapter.a + rank_row * adapter.a_pitch);
  float sums[kMaxRows] = {};
  for (int64_t v = gpu::ThreadX(); v < x.cols / 8; v += kLowThreads) {
    const gpu::Words4 left = a[v];
    QLORA_UNROLL
    for (int tile = 0; tile < kMaxRows; tile += kTileRows) {
      if (tile >= live) break;
      // Loads without conditions, so that they are under way together: dead rows repeat the last.
      gpu::Words4 right[kTileRows];
      QLORA_UNROLL
      for (int m = 0; m < kTileRows; ++m) {
        const int row = tile + m < live ? tile + m : live - 1;
        right[m] = reinterpret_cast<const gpu::Words4*>(RowOf<Bf16>(x, row))[v];
      }
      QLORA_UNROLL
      for (int m = 0; m < kTileRows; ++m) sums[tile + m] = Dot8(left, right[m], sums[tile + m]);
    }
  }
  gpu::SharedMemory memory;
  const gpu::Shared<float> partial = memory.Take<float>(kLowThreads / 32 * kMaxRows);
  QLORA_UNROLL
  for (int m = 0; m < kMaxRows; ++m) {
    if (m >= live) break;
    for (int mask = 16; mask > 0; mask >>= 1) sums[m] += gpu::ShuffleXor(sums[m], mask);
    if (gpu::Lane() == 0) partial[gpu::Warp() * kMaxRows + m] = sums[m];
  }
  gpu::SyncThreads();
  const int m = gpu::ThreadX();
  if (m >= live || !Serves(adapter, m)) return;
  float sum = 0.0f;
  for (int w = 0; w < kLowThreads / 32; ++w) sum += partial[w * kMaxRows + m];
  adapter.low[m * adapter.low_pitch + rank_row] = gpu::ToBf16(sum);
}

// ---- y = x · Wᵀ + bias + Σ scale · low · Bᵀ

// W is the 16-row operand of the matrix instruction, x the narrow one: yᵀ = W · xᵀ. A block owns 32
// rows of W; its warps take steps of 128 elements of K in turn, and their sums are added in the
// order of the warps.
//
// Which elements of K stand in which column of a fragment is free as long as both operands agree:
// lane (g, t) decodes elements 32t .. 32t + 31 of rows g and g + 8, 16 bytes as they lie in memory
// under one scale, and one matrix instruction takes two bytes from each lane.
//
// A weight is bf16(code value · scale), rounded per weight, so a table cannot hold it: the table
// has the two fp32 values of each byte, 16 times so that lanes of a half-warp never share a bank,
// and each lookup is scaled and packed: shift, mask, load, two products, one conversion for two
// weights.
template <int kTiles>
struct SkinnyShape {
  static constexpr int kWarps = 8 / kTiles;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kOutputs = kBlockWeightRows * kTileRows * kTiles / kThreads;  // a thread
  static constexpr int kStages = 2;
  static constexpr int kSharedBytes =
      kTableBytes + 256 * int(sizeof(float)) + kWarps * kStages * kTiles * kStageBytes;
};

struct SkinnyArguments {
  ConstTensor x;
  DecodeSource weight;
  int64_t out_features;
  ConstTensor bias;
  LiveRows live_rows;
  SkinnyAdapters adapters;
  Tensor y;
};

// What a lane has read of one step: codes and the parts of their scale, of rows g, g + 8 of two
// fragments.
struct Packed {
  gpu::Words4 codes[4];
  uint32_t scale_code[4];
  float scale[4];
};

// Where a lane's rows begin. Offsets fit 32 bits within a block's rows, and block numbers in a
// whole tensor (see IsSkinny). Rows behind the last are read as the last: nobody stores their sums.
struct LaneRows {
  const uint8_t* codes;     // of the thread block's first row
  uint32_t first_block;     // of that row
  uint32_t code_offset[4];  // of this lane's rows from there
};

QLORA_DEVICE LaneRows LaneRowsOf(const SkinnyArguments& args, int64_t n0) {
  const int64_t columns = args.x.cols;
  LaneRows rows;
  rows.codes = args.weight.codes + n0 * columns / 2;
  rows.first_block = uint32_t(n0 * columns / kBlockSize);
  const int last = int(args.out_features - 1 - n0);
  QLORA_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int row = gpu::Lane() / 4 + 8 * i;
    rows.code_offset[i] = uint32_t(row < last ? row : last) * uint32_t(columns / 2);
  }
  return rows;
}

QLORA_DEVICE void LoadPacked(const DecodeSource& w, const LaneRows& rows, uint32_t k,
                             Packed& packed) {
  QLORA_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t at = rows.code_offset[i] + k / 2;
    packed.codes[i] = gpu::LoadStream(reinterpret_cast<const gpu::Words4*>(rows.codes + at));
    const uint32_t block = rows.first_block + at / (kBlockSize / 2);
    if (w.absmax_u8 != nullptr) {
      packed.scale_code[i] = w.absmax_u8[block];
      packed.scale[i] = w.nested_absmax[block >> 8];
    } else {
      packed.scale[i] = w.absmax_f32[block];
    }
  }
}

// Two weights as bf16, from the table entry at byte offset `entry`.
QLORA_DEVICE uint32_t DecodePair(gpu::Shared<uint8_t> table, uint32_t entry, float scale) {
  const gpu::Words2 pair = (table + int(entry)).As<gpu::Words2>()[0];
  return gpu::PackBf16(gpu::FloatOf(pair.w[0]) * scale, gpu::FloatOf(pair.w[1]) * scale);
}

// Begins the copy of a step of x into a warp's stage: lane (g, t)'s elements of row g together,
// zeros behind the live rows and behind the last column.
template <int kTiles>
QLORA_DEVICE void StageX(const ConstTensor& x, int live, uint32_t step_k,
                         gpu::Shared<uint8_t> stage) {
  const int piece = gpu::Lane() % 16;
  const uint32_t k = step_k + piece * 8;
  QLORA_UNROLL
  for (int i = 0; i < kTiles * kTileRows / 2; ++i) {
    const int m = 2 * i + gpu::Lane() / 16;
    const bool valid = m < live && k < x.cols;
    gpu::CopyAsync16(stage + (m * 4 + piece / 4) * kStagePitch + piece % 4 * 16,
                     static_cast<const Bf16*>(x.data) + (valid ? m * uint32_t(x.pitch) + k : 0),
                     valid);
  }
  gpu::CopyAsyncCommit();
}

template <int kTiles>
QLORA_DEVICE void MultiplyStep(const Packed& packed, const float (&scale)[4],
                               gpu::Shared<uint8_t> table, gpu::Shared<uint8_t> stage,
                               float (&sums)[2][kTiles][4]) {
  const uint32_t lane_entry = uint32_t(gpu::Lane() % 16 * 8);
  QLORA_UNROLL
  for (int q = 0; q < 4; ++q) {
    gpu::Words4 x[kTiles];
    QLORA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      x[tile] = (stage + (tile * kStageBytes + gpu::Lane() * kStagePitch + q * 16))
                    .template As<gpu::Words4>()[0];
    }
    QLORA_UNROLL
    for (int fragment = 0; fragment < 2; ++fragment) {
      uint32_t pairs[2][4];  // of rows g and g + 8
      QLORA_UNROLL
      for (int h = 0; h < 2; ++h) {
        const uint32_t word = packed.codes[2 * fragment + h].w[q];
        const float s = scale[2 * fragment + h];
        pairs[h][0] = DecodePair(table, (word << 7 & 0x7f80u) | lane_entry, s);
        pairs[h][1] = DecodePair(table, (word >> 1 & 0x7f80u) | lane_entry, s);
        pairs[h][2] = DecodePair(table, (word >> 9 & 0x7f80u) | lane_entry, s);
        pairs[h][3] = DecodePair(table, (word >> 17 & 0x7f80u) | lane_entry, s);
      }
      QLORA_UNROLL
      for (int half = 0; half < 2; ++half) {
        const uint32_t a[4] = {pairs[0][2 * half], pairs[1][2 * half], pairs[0][2 * half + 1],
                               pairs[1][2 * half + 1]};
        QLORA_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint32_t b[2] = {x[tile].w[2 * half], x[tile].w[2 * half + 1]};
          gpu::MatrixMultiplyAdd(sums[fragment][tile], a, b);
        }
      }
    }
  }
}

// bias + Σ scale · low · Bᵀ of one output.
QLORA_DEVICE float BesideBase(const SkinnyArguments& args, int m, int64_t n) {
  float sum = args.bias.data != nullptr ? WidenAt(args.bias, 0, n) : 0.0f;
  for (int i = 0; i < args.adapters.count; ++i) {
    const SkinnyAdapter& adapter = args.adapters.at[i];
    if (!Serves(adapter, m)) continue;
    const uint16_t* low = adapter.low + m * adapter.low_pitch;
    const uint16_t* b = adapter.b + n * adapter.b_pitch;
    float dot = 0.0f;
    for (int r = 0; adapter.wide && r < adapter.rank; r += 8) {
      dot = Dot8(*reinterpret_cast<const gpu::Words4*>(low + r),
                 *reinterpret_cast<const gpu::Words4*>(b + r), dot);
    }
    for (int r = 0; !adapter.wide && r < adapter.rank; ++r) {
      dot = fmaf(gpu::FromBf16(low[r]), gpu::FromBf16(b[r]), dot);
    }
    sum = fmaf(adapter.scale, dot, sum);
  }
  return sum;
}

template <class Y, int kTiles>
QLORA_LAUNCH_BOUNDS(SkinnyShape<kTiles>::kThreads, 2)
QLORA_KERNEL void SkinnyKernel(SkinnyArguments args) {
  using Shape = SkinnyShape<kTiles>;
  const int live = int(LiveRowCount(args.live_rows, args.x.rows));
  if (live == 0) return;
  const int64_t n0 = gpu::BlockX() * kBlockWeightRows;
  const int lane = gpu::Lane(), warp = gpu::Warp();
  gpu::SharedMemory memory;
  const gpu::Shared<uint8_t> table = memory.Take<uint8_t>(kTableBytes);
  const gpu::Shared<float> map = memory.Take<float>(256);
  const gpu::Shared<uint8_t> stages =
      memory.Take<uint8_t>(Shape::kWarps * Shape::kStages * kTiles * kStageBytes) +
      warp * Shape::kStages * kTiles * kStageBytes;

  // Columns behind the last are read as the last ones: their x is 0.
  const LaneRows rows = LaneRowsOf(args, n0);
  const uint32_t columns = uint32_t(args.x.cols), lane_k = lane % 4 * kLaneStep;
  constexpr uint32_t kStride = Shape::kWarps * kStep;
  Packed packed[Shape::kStages] = {};
  const auto load = [&](uint32_t step_k, int s) {
    if (step_k < columns) {
      const uint32_t mine = step_k + lane_k, last = columns - kLaneStep;
      LoadPacked(args.weight, rows, mine < last ? mine : last, packed[s]);
    }
    StageX<kTiles>(args.x, live, step_k, stages + s * kTiles * kStageBytes);
  };

  // The first two steps are under way before anything else.
  uint32_t k = warp * kStep;
  QLORA_UNROLL
  for (int s = 0; s < Shape::kStages; ++s) load(k + s * kStride, s);
  for (int i = gpu::ThreadX(); i < 256 * 16; i += Shape::kThreads) {
    const int byte = i / 16;
    table.As<gpu::Words2>()[i] = gpu::Words2{
        {gpu::BitsOf(args.weight.values[byte >> 4]), gpu::BitsOf(args.weight.values[byte & 15])}};
  }
  const bool nested = args.weight.absmax_u8 != nullptr;
  const float offset = nested ? *args.weight.offset : 0.0f;
  if (nested) {
    for (int i = gpu::ThreadX(); i < 256; i += Shape::kThreads) map[i] = args.weight.map[i];
  }
  float beside[Shape::kOutputs];
  QLORA_UNROLL
  for (int j = 0; j < Shape::kOutputs; ++j) {
    const int output = gpu::ThreadX() + j * Shape::kThreads, m = output / kBlockWeightRows;
    const int64_t n = n0 + output % kBlockWeightRows;
    beside[j] = m < live && n < args.out_features ? BesideBase(args, m, n) : 0.0f;
  }
  gpu::SyncThreads();

  float sums[2][kTiles][4] = {};
  while (k < columns) {
    QLORA_UNROLL
    for (int s = 0; s < Shape::kStages; ++s) {
      gpu::CopyAsyncWait<Shape::kStages - 1>();
      gpu::SyncWarp();
      if (k < columns) {
        float scale[4];
        QLORA_UNROLL
        for (int i = 0; i < 4; ++i) {
          scale[i] = packed[s].scale[i];
          if (nested) {
            const float coarse = map[int(packed[s].scale_code[i])];
            scale[i] = coarse * scale[i] + offset;
          }
        }
        MultiplyStep<kTiles>(packed[s], scale, table, stages + s * kTiles * kStageBytes, sums);
      }
      gpu::SyncWarp();
      load(k + Shape::kStages * kStride, s);
      k += kStride;
    }
  }
  gpu::CopyAsyncWait<0>();
  gpu::SyncThreads();

  const gpu::Shared<float> partial = table.As<float>();
  constexpr int kPartial = kPartialPitch * kTileRows * kTiles;  // of a warp
  QLORA_UNROLL
  for (int fragment = 0; fragment < 2; ++fragment) {
    QLORA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      QLORA_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int m = tile * kTileRows + lane % 4 * 2 + e % 2;
        const int n = fragment * 16 + lane / 4 + e / 2 * 8;
        partial[warp * kPartial + m * kPartialPitch + n] = sums[fragment][tile][e];
      }
    }
  }
  gpu::SyncThreads();
  QLORA_UNROLL
  for (int j = 0; j < Shape::kOutputs; ++j) {
    const int output = gpu::ThreadX() + j * Shape::kThreads, m = output / kBlockWeightRows;
    const int column = output % kBlockWeightRows;
    float sum = 0.0f;
    for (int w = 0; w < Shape::kWarps; ++w) {
      sum += partial[w * kPartial + m * kPartialPitch + column];
    }
    if (m < live && n0 + column < args.out_features) {
      RowOf<Y>(args.y, m)[n0 + column] = Narrow<Y>(sum + beside[j]);
    }
  }
}

// ---- The host side

SkinnyAdapters AdaptersOf(const LinearForward& op) {
  SkinnyAdapters adapters = {};
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& s = op.adapters[i];
    const ConstTensor low = LowOf(op, i);
    adapters.at[adapters.count++] = {
        static_cast<const uint16_t*>(s.IsLowGiven() ? nullptr : s.a.data),
        static_cast<const uint16_t*>(s.b.data),
        static_cast<uint16_t*>(const_cast<void*>(low.data)),
        static_cast<const int32_t*>(s.rows.data),
        s.a.pitch,
        s.b.pitch,
        low.pitch,
        int(s.a.rows),
        s.scale,
        s.a.rows % 8 == 0 && IsAligned(s.b, 16) && IsAligned(low, 16)};
  }
  return adapters;
}

template <class Y, int kTiles>
void LaunchSkinny(const SkinnyArguments& args, const Context& context) {
  gpu::Launch(context.launcher, LinearForward::kName, &SkinnyKernel<Y, kTiles>,
              {.blocks_x = CeilDiv(args.out_features, kBlockWeightRows),
               .threads = SkinnyShape<kTiles>::kThreads,
               .shared_bytes = SkinnyShape<kTiles>::kSharedBytes},
              args);
}

}  // namespace

bool IsSkinny(const LinearForward& op) {
  const LinearBase& base = op.base;
  if (op.x.dtype != DType::kBf16 || op.x.rows > kMaxRows ||
      base.kind != LinearBase::Kind::kQuantized || base.quantized.spec.block_size != kBlockSize ||
      base.in_features == 0 || base.in_features % kBlockSize != 0 ||
      base.in_features > kMaxColumns || op.x.pitch > kMaxColumns ||
      base.out_features > kMaxWeights / base.in_features || op.adapters.size() > kMaxAdapters ||
      !IsAligned(op.x, 16) || !IsAligned(base.quantized.codes, 16)) {
    return false;
  }
  return std::all_of(op.adapters.begin(), op.adapters.end(), [](const AdapterSegment& s) {
    return s.dropout.probability == 0.0f && IsAligned(s.a, 16);
  });
}

void RunSkinny(const LinearForward& op, const Context& context) {
  const SkinnyArguments args = {op.x,
                                DecodeSourceOf(op.base.quantized),
                                op.base.out_features,
                                op.bias,
                                op.live_rows,
                                AdaptersOf(op),
                                op.y};
  int rank = 0;
  for (const SkinnyAdapter& adapter : args.adapters.at) rank = std::max(rank, adapter.rank);
  gpu::Launch(context.launcher, LinearForward::kName, &SkinnyLowKernel,
              {.blocks_x = op.x.rows > 0 ? rank : 0,
               .blocks_y = args.adapters.count,
               .threads = kLowThreads,
               .shared_bytes = kLowThreads / 32 * kMaxRows * int64_t{sizeof(float)}},
              op.x, op.live_rows, args.adapters);
  if (op.x.rows == 0) return;
  DispatchActivation(op.y.dtype, [&](auto tag) {
    using Y = typename decltype(tag)::Type;
    if (op.x.rows <= kTileRows) {
      LaunchSkinny<Y, 1>(args, context);
    } else {
      LaunchSkinny<Y, 2>(args, context);
    }
  });
}

}  // namespace qlora::kernels::cuda
