#include <algorithm>
#include <cmath>

#include "gpu/hopper.h"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/hopper_layout.h"
#include "kernels/cuda/hopper_product.h"
#include "kernels/cuda/product.h"

#ifdef __CUDACC__
// Below sm_90a the kernels are empty, and what they call is not called.
#pragma nv_diag_suppress 177
#endif

namespace qlora::kernels::cuda {
namespace hopper {
namespace {

constexpr int kMaxAdapters = 4;
constexpr int kWarpgroup = 128;
// One warpgroup fills stages, two multiply. Filling is decoding a weight's tile; the copy of the
// tokens' tile starts just before, for both wait for the same empty stage. A warpgroup of its own
// for the copies would leave 128 registers a thread to compile with, and the sums alone are 128.
constexpr int kThreads = 3 * kWarpgroup;
constexpr int kMultiplyingWarps = 8;
// Registers of a thread by role. They only change hands within what the block was started with, by
// the launch bounds a multiple of 8 a thread: who asked for more would wait for ever.
constexpr int kDecodeRegisters = 104, kMultiplyRegisters = 200;
constexpr int kStartRegisters = 65536 / kThreads / 8 * 8;
static_assert(kDecodeRegisters + 2 * kMultiplyRegisters <= 3 * kStartRegisters);

// A decoder's codes are copied this many steps ahead into slots of its own, two planes of 16 bytes
// a thread, so that neighbouring threads meet different banks.
constexpr int kCodesAhead = 3, kCodeSlots = kCodesAhead + 1;
constexpr int kCodeSlotBytes = 2 * kChunkBytes * kDecoders;
// Results pass through shared memory 64 tokens at a time.
constexpr int kResultTokens = 64;

// A tile is 128 features of the result by kTokens tokens.
template <int kTokens_, bool kBackward_>
struct Config {
  static constexpr int kTokens = kTokens_;
  static constexpr bool kBackward = kBackward_;
  static constexpr int kStages = kTokens == 256 ? 4 : 6;
  static constexpr int kTokenBytes = kTokens * kRowBytes;
  static constexpr int kStageBytes = int(kWeightTileBytes) + kTokenBytes;
  // Where things lie behind an aligned address.
  static constexpr int kCodes = kStages * kStageBytes;
  static constexpr int kResults = kCodes + kCodeSlots * kCodeSlotBytes;
  static constexpr int kMap = kResults + 2 * kResultTokens * kRowBytes;
  static constexpr int kBarriers = kMap + 256 * 4;
  static constexpr int kBytes = kBarriers + 2 * kStages * 8;
  static constexpr int kSharedBytes = kBytes + kAtomAlignment;
};

struct Adapter {
  gpu::TensorMap tokens, weight;
  int depth;
  float after;  // what the sums are multiplied by once this term is in them
};

struct Arguments {
  gpu::TensorMap tokens;
  Adapter adapters[kMaxAdapters];
  int adapter_count;
  DecodeSource base;
  int64_t weight_rows, weight_blocks;  // of W: rows, blocks of 64 in each
  int64_t depth;                       // of the base's term
  LiveRows live;
  ConstTensor bias;
  bool accumulate;
  Tensor c;
};

QLORA_DEVICE int64_t StepsOf(int64_t depth) { return CeilDiv(depth, kTileDepth); }

// The tiles of one block, in its order: every role walks the same ones.
template <class C>
struct Tiles {
  int64_t live, weight_tiles, token_tiles;
  QLORA_DEVICE explicit Tiles(const Arguments& p)
      : live(LiveRowCount(p.live, p.c.rows)),
        weight_tiles(CeilDiv(p.c.cols, kTileRows)),
        token_tiles(CeilDiv(live, C::kTokens)) {}
  QLORA_DEVICE int64_t Count() const { return weight_tiles * token_tiles; }
  QLORA_DEVICE TileIndex At(int64_t i) const { return TileAt(i, weight_tiles, token_tiles); }
};

// The ring of stages: each is full once the tokens have landed and the weight stands, empty once
// both multiplying warpgroups have read it.
template <class C>
struct Ring {
  gpu::SharedAddress base;
  int stage = 0;
  uint32_t phase = 0;
  QLORA_DEVICE explicit Ring(gpu::SharedAddress b) : base(b) {}
  QLORA_DEVICE gpu::SharedAddress Weight() const { return base + uint32_t(stage * C::kStageBytes); }
  QLORA_DEVICE gpu::SharedAddress Tokens() const { return Weight() + kWeightTileBytes; }
  QLORA_DEVICE gpu::SharedAddress Full() const { return base + uint32_t(C::kBarriers + stage * 8); }
  QLORA_DEVICE gpu::SharedAddress Empty() const { return Full() + C::kStages * 8; }
  QLORA_DEVICE void WaitFull() const { gpu::BarrierWait(Full(), phase); }
  QLORA_DEVICE void WaitEmpty() const { gpu::BarrierWait(Empty(), phase ^ 1); }
  QLORA_DEVICE void Advance() {
    if (++stage == C::kStages) stage = 0, phase ^= 1;
  }
};

// ---- The decoders: they fill the stages

// One decoder's blocks of W in the order of steps, -1 where the tile reaches over W's edge.
template <class C>
struct BlockWalk {
  int64_t tile, step = 0, row0 = 0;
  QLORA_DEVICE BlockWalk(const Tiles<C>& tiles) : tile(gpu::BlockX()) { FindTile(tiles); }
  QLORA_DEVICE void FindTile(const Tiles<C>& tiles) {
    if (tile < tiles.Count()) row0 = tiles.At(tile).weight * kTileRows;
  }
  QLORA_DEVICE int64_t Block(const Arguments& p, const Tiles<C>& tiles, int decoder) const {
    const WeightBlock at = BlockOf<C::kBackward>(decoder, row0, step);
    const bool inside =
        tile < tiles.Count() && at.row < p.weight_rows && at.column_block < p.weight_blocks;
    return inside ? at.row * p.weight_blocks + at.column_block : -1;
  }
  QLORA_DEVICE void Next(const Arguments& p, const Tiles<C>& tiles) {
    if (++step < StepsOf(p.depth)) return;
    step = 0;
    tile += gpu::GridX();
    FindTile(tiles);
  }
};

// A block's scale as it is stored: loaded a step ahead, put together when it is needed.
struct StoredScale {
  float factor = 0.0f;  // second-level scale, or the scale itself
  int code = -1;        // of the 8-bit map; -1: none
  float offset = 0.0f;
};
QLORA_DEVICE StoredScale LoadScale(const DecodeSource& s, float offset, int64_t block) {
  if (block < 0) return {};
  if (s.absmax_u8 == nullptr) return {s.absmax_f32[block], -1, 0.0f};
  return {s.nested_absmax[block >> 8], s.absmax_u8[block], offset};
}

// 64 weights as bf16(value · scale), bit for bit: the scaled values of all 16 codes are rounded
// once for the block and kept as byte planes, low and high bytes of codes 0-7 and 8-15, from which
// byte permutes pick. Three instructions a weight, none of them a load.
struct ScaledCodes {
  uint32_t low[4], high[4];
  QLORA_DEVICE ScaledCodes(const float (&values)[16], float scale) {
    QLORA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t a = gpu::PackBf16(values[4 * i] * scale, values[4 * i + 1] * scale);
      const uint32_t b = gpu::PackBf16(values[4 * i + 2] * scale, values[4 * i + 3] * scale);
      low[i] = gpu::BytePermute(a, b, 0x6420);
      high[i] = gpu::BytePermute(a, b, 0x7531);
    }
  }
  // Four codes: the nibbles of the lower half of `codes`. Byte j holds weights 2j (high nibble) and
  // 2j + 1, so nibbles come as weights 1, 0, 3, 2.
  QLORA_DEVICE void Decode4(uint32_t codes, uint32_t& first, uint32_t& second) const {
    const uint32_t within = codes & 0x7777;                  // of eight codes
    const uint32_t which = (codes & 0x8888) >> 1 | 0x3210u;  // byte j of the lower or upper eight
    const uint32_t l = gpu::BytePermute(gpu::BytePermute(low[0], low[1], within),
                                        gpu::BytePermute(low[2], low[3], within), which);
    const uint32_t h = gpu::BytePermute(gpu::BytePermute(high[0], high[1], within),
                                        gpu::BytePermute(high[2], high[3], within), which);
    first = gpu::BytePermute(l, h, 0x4051);
    second = gpu::BytePermute(l, h, 0x6273);
  }
};

QLORA_DEVICE void DecodeRow(const gpu::Words4 (&codes)[2], const ScaledCodes& scaled,
                            gpu::SharedAddress tile, int row) {
  QLORA_UNROLL
  for (int chunk = 0; chunk < 8; ++chunk) {
    const uint32_t eight = codes[chunk / 4].w[chunk % 4];
    gpu::Words4 weights;
    scaled.Decode4(eight, weights.w[0], weights.w[1]);
    scaled.Decode4(eight >> 16, weights.w[2], weights.w[3]);
    gpu::StoreShared(tile + ChunkOffset(row, chunk), weights);
  }
}

// Waits for the stage and has the tokens' side of a step copied to it, together with
// `weight_bytes` that the caller has copied.
template <class C>
QLORA_DEVICE void StartStep(const gpu::TensorMap& tokens, int64_t token0, int64_t step,
                            uint32_t weight_bytes, int decoder, const Ring<C>& ring) {
  ring.WaitEmpty();
  if (decoder != 0) return;
  gpu::BarrierArriveExpect(ring.Full(), C::kTokenBytes + weight_bytes);
  gpu::TensorLoad(ring.Tokens(), tokens, int(token0), int(step * kTileDepth), ring.Full());
}

// An adapter's matrix comes as it is, by the copy engine: zeros behind its rank.
template <class C>
QLORA_DEVICE void LoadAdapter(const Adapter& adapter, int64_t feature0, int64_t token0, int decoder,
                              Ring<C>& ring) {
  for (int64_t step = 0; step < StepsOf(adapter.depth); ++step) {
    StartStep<C>(adapter.tokens, token0, step, kWeightTileBytes, decoder, ring);
    if (decoder == 0) {
      const int depth0 = int(step * kTileDepth), f = int(feature0);
      if (C::kBackward) {
        gpu::TensorLoad(ring.Weight(), adapter.weight, depth0, f, ring.Full());
        gpu::TensorLoad(ring.Weight() + kAtomBytes, adapter.weight, depth0, f + kAtomColumns,
                        ring.Full());
      } else {
        gpu::TensorLoad(ring.Weight(), adapter.weight, f, depth0, ring.Full());
      }
    }
    gpu::BarrierArrive(ring.Full());
    ring.Advance();
  }
}

template <class C>
QLORA_DEVICE void Decode(const Arguments& p, int decoder, gpu::Shared<uint8_t> memory,
                         Ring<C> ring) {
  const Tiles<C> tiles(p);
  const gpu::Shared<gpu::Words4> slots = (memory + C::kCodes).template As<gpu::Words4>();
  const gpu::Shared<float> map = (memory + C::kMap).template As<float>();
  const float offset = p.base.absmax_u8 == nullptr ? 0.0f : *p.base.offset;
  const auto place = [&](int slot, int plane) { return (slot * 2 + plane) * kDecoders + decoder; };
  // 32 bytes of a row, one sector of memory, as two copies: nobody else wants them, so each thread
  // waits for its own and no barrier is needed.
  const auto start_codes = [&](int64_t block, int slot) {
    const uint8_t* from = p.base.codes + (block < 0 ? 0 : block * 32);
    gpu::CopyAsync16(slots + place(slot, 0), from, block >= 0);
    gpu::CopyAsync16(slots + place(slot, 1), from + kChunkBytes, block >= 0);
    gpu::CopyAsyncCommit();
  };
  BlockWalk<C> ahead(tiles), next(tiles);
  for (int slot = 0; slot < kCodesAhead; ++slot) {
    start_codes(ahead.Block(p, tiles, decoder), slot);
    ahead.Next(p, tiles);
  }
  StoredScale stored = LoadScale(p.base, offset, next.Block(p, tiles, decoder));
  int slot = 0;
  for (int64_t i = gpu::BlockX(); i < tiles.Count(); i += gpu::GridX()) {
    const TileIndex tile = tiles.At(i);
    const int64_t token0 = tile.token * C::kTokens;
    for (int a = 0; a < p.adapter_count; ++a) {
      LoadAdapter<C>(p.adapters[a], tile.weight * kTileRows, token0, decoder, ring);
    }
    for (int64_t step = 0; step < StepsOf(p.depth); ++step) {
      start_codes(ahead.Block(p, tiles, decoder), (slot + kCodesAhead) % kCodeSlots);
      ahead.Next(p, tiles);
      float scale = stored.factor;
      if (stored.code >= 0) {
        const float coded = map[stored.code];
        scale = coded * stored.factor + stored.offset;
      }
      next.Next(p, tiles);
      stored = LoadScale(p.base, offset, next.Block(p, tiles, decoder));
      const ScaledCodes scaled(p.base.values, scale);
      gpu::CopyAsyncWait<kCodesAhead>();
      const gpu::Words4 first = slots[place(slot, 0)], second = slots[place(slot, 1)];
      slot = (slot + 1) % kCodeSlots;
      const gpu::Words4 codes[2] = {first, second};
      StartStep<C>(p.tokens, token0, step, 0, decoder, ring);
      DecodeRow(codes, scaled, ring.Weight(), decoder);
      gpu::FenceAsyncProxy();
      gpu::BarrierArrive(ring.Full());
      ring.Advance();
    }
  }
  gpu::CopyAsyncWait<0>();
}

// ---- The multiplying warpgroups: 64 features by all tokens of the tile each

// One term's steps, a product always under way while the next is awaited; then the sums so far
// times `after`. (Without a condition: behind one, the assembler no longer sees that no product is
// under way and makes all of them wait for each other.)
template <class C>
QLORA_DEVICE void MultiplyTerm(int64_t depth, float after, int group, Ring<C>& ring,
                               float (&sum)[C::kTokens / 2]) {
  const int64_t steps = StepsOf(depth);
  gpu::SharedAddress read = 0;  // whose reader has not been waited for
  for (int64_t step = 0; step < steps; ++step) {
    ring.WaitFull();
    gpu::WarpgroupFence();
    QLORA_UNROLL
    for (int part = 0; part < kTileDepth / kInstructionDepth; ++part) {
      gpu::WarpgroupMultiplyAdd<C::kBackward>(
          sum, WeightDescriptor<C::kBackward>(ring.Weight(), group, part),
          TokenDescriptor(ring.Tokens(), part));
    }
    gpu::WarpgroupCommit();
    gpu::WarpgroupWait<1>(sum);
    if (step > 0 && gpu::Lane() == 0) gpu::BarrierArrive(read);
    read = ring.Empty();
    ring.Advance();
  }
  gpu::WarpgroupWait<0>(sum);
  if (steps > 0 && gpu::Lane() == 0) gpu::BarrierArrive(read);
  QLORA_UNROLL
  for (int i = 0; i < C::kTokens / 2; ++i) sum[i] *= after;
}

// The sums stand features by tokens, the result tokens by features: 64 tokens at a time are
// transposed on their way through shared memory, where a token's 64 features are a swizzled row,
// and leave as whole 16-byte pieces. What dx held before comes in the same way.
template <class C>
QLORA_DEVICE void StoreTile(const Arguments& p, int64_t live, int64_t feature0, int64_t token0,
                            int group, gpu::SharedAddress stage,
                            const float (&sum)[C::kTokens / 2]) {
  const int thread = gpu::ThreadX() % kWarpgroup, lane = gpu::Lane();
  const int64_t feature = feature0 + group * kInstructionRows;
  float bias[2] = {0.0f, 0.0f};
  if (p.bias.data != nullptr) {
    QLORA_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int64_t at = feature + ResultPlace(thread, 2 * h).row;
      if (at < p.c.cols) bias[h] = WidenAt(p.bias, 0, at);
    }
  }
  // Lane l addresses row l % 8 of 8×8 matrix l / 8: matrices of a step are tokens 0-7 and 8-15,
  // each of the warp's features 0-7 and 8-15.
  const int matrix_token = lane / 16 * 8 + lane % 8;
  const int matrix_chunk = thread / 32 * 2 + lane / 8 % 2;
  const auto barrier = [&] { gpu::NamedBarrier(1 + group, kWarpgroup); };
  // f(place in the stage, result in memory) for each 16 bytes of this thread that exist.
  const auto for_each_piece = [&](int part, auto&& f) {
    QLORA_UNROLL
    for (int i = 0; i < kResultTokens * 8 / kWarpgroup; ++i) {
      const int token = i * (kWarpgroup / 8) + thread / 8, chunk = thread % 8;
      const int64_t row = token0 + part * kResultTokens + token, column = feature + chunk * 8;
      if (row >= live || column >= p.c.cols) continue;
      f(stage + ChunkOffset(token, chunk),
        reinterpret_cast<gpu::Words4*>(RowOf<Bf16>(p.c, row) + column));
    }
  };
  QLORA_UNROLL
  for (int part = 0; part < C::kTokens / kResultTokens; ++part) {
    barrier();  // what the stage held has been read
    if (p.accumulate) {
      for_each_piece(part,
                     [](gpu::SharedAddress at, const gpu::Words4* c) { gpu::StoreShared(at, *c); });
      barrier();
    }
    QLORA_UNROLL
    for (int j = 0; j < kResultTokens / 16; ++j) {
      const gpu::SharedAddress row = stage + ChunkOffset(16 * j + matrix_token, matrix_chunk);
      uint32_t old[4] = {0, 0, 0, 0}, packed[4];
      if (p.accumulate) gpu::LoadTransposed(old, row);
      QLORA_UNROLL
      for (int m = 0; m < 4; ++m) {
        const int first = part * (kResultTokens / 2) + 8 * j + 2 * m;
        float low = sum[first] + bias[m % 2], high = sum[first + 1] + bias[m % 2];
        if (p.accumulate) {
          low += gpu::FromBf16(uint16_t(old[m])), high += gpu::FromBf16(uint16_t(old[m] >> 16));
        }
        packed[m] = gpu::PackBf16(low, high);
      }
      gpu::StoreTransposed(row, packed);
    }
    barrier();
    for_each_piece(part, [](gpu::SharedAddress at, gpu::Words4* c) { *c = gpu::LoadShared(at); });
  }
}

template <class C>
QLORA_DEVICE void Multiply(const Arguments& p, int group, Ring<C> ring) {
  const Tiles<C> tiles(p);
  const gpu::SharedAddress stage =
      ring.base + uint32_t(C::kResults + group * kResultTokens * kRowBytes);
  for (int64_t i = gpu::BlockX(); i < tiles.Count(); i += gpu::GridX()) {
    float sum[C::kTokens / 2];
    QLORA_UNROLL
    for (int j = 0; j < C::kTokens / 2; ++j) sum[j] = 0.0f;
    for (int a = 0; a < p.adapter_count; ++a) {
      MultiplyTerm<C>(p.adapters[a].depth, p.adapters[a].after, group, ring, sum);
    }
    MultiplyTerm<C>(p.depth, 1.0f, group, ring, sum);
    const TileIndex tile = tiles.At(i);
    StoreTile<C>(p, tiles.live, tile.weight * kTileRows, tile.token * C::kTokens, group, stage,
                 sum);
  }
}

template <class C>
QLORA_KERNEL void QLORA_LAUNCH_BOUNDS(kThreads, 1)
    HopperProduct(const QLORA_GRID_CONSTANT Arguments p) {
  if constexpr (gpu::kHasWarpgroups) {
    gpu::SharedMemory shared;
    gpu::Shared<uint8_t> memory = shared.Take<uint8_t>(C::kSharedBytes);
    memory = memory + int(-gpu::AddressOf(memory) & uint32_t(kAtomAlignment - 1));
    Ring<C> ring(gpu::AddressOf(memory));
    if (gpu::ThreadX() == 0) {
      for (; ring.phase == 0; ring.Advance()) {
        gpu::BarrierInit(ring.Full(), 1 + kDecoders);
        gpu::BarrierInit(ring.Empty(), kMultiplyingWarps);
      }
      gpu::BarrierInitFence();
    }
    ring = Ring<C>(gpu::AddressOf(memory));
    const gpu::Shared<float> map = (memory + C::kMap).template As<float>();
    if (gpu::ThreadX() < 256 && p.base.absmax_u8 != nullptr) {
      map[gpu::ThreadX()] = p.base.map[gpu::ThreadX()];
    }
    gpu::SyncThreads();
    const int role = gpu::ThreadX() / kWarpgroup;
    if (role == 0) {
      gpu::RegistersDown<kDecodeRegisters>();
      Decode<C>(p, gpu::ThreadX(), memory, ring);
    } else {
      gpu::RegistersUp<kMultiplyRegisters>();
      Multiply<C>(p, role - 1, ring);
    }
  }
}

// ---- The host's side

// Whether this program holds the kernels' code: where it was built without sm_90a they are empty.
#if defined(__CUDACC__) && !defined(QLORA_CUDA_SM90A)
constexpr bool kIsBuilt = false;
#else
constexpr bool kIsBuilt = true;
#endif

bool HasInstructions(const gpu::Properties& card) { return kIsBuilt && card.major == 9; }

bool IsDecodable(const LinearBase& base) {
  return base.kind == LinearBase::Kind::kQuantized && base.quantized.spec.block_size == 64 &&
         base.in_features % kAtomColumns == 0 && base.out_features % 8 == 0 &&
         IsAligned(base.quantized.codes, 16);
}
bool IsMap(const ConstTensor& t) {
  return t.dtype == DType::kBf16 && t.rows <= INT32_MAX && t.cols <= INT32_MAX && IsAligned(t, 16);
}

template <class C>
void LaunchTokens(const char* name, const Arguments& p, const Context& context) {
  const int64_t tiles = CeilDiv(p.c.rows, C::kTokens) * CeilDiv(p.c.cols, kTileRows);
  gpu::Launch(context.launcher, name, &HopperProduct<C>,
              {.blocks_x = std::min<int64_t>(tiles, context.card.multiprocessors),
               .threads = kThreads,
               .shared_bytes = C::kSharedBytes},
              p);
}

// `tokens` and `adapters`' operands: [rows, depth] each; weights as they lie.
struct Term {
  ConstTensor tokens, weight;
  float scale;
};
template <bool kBackward>
void Run(const char* name, Arguments p, const ConstTensor& tokens, const std::vector<Term>& terms,
         const Context& context) {
  if (p.c.rows == 0) return;  // the copy engine knows no empty matrix
  // Wide tiles halve the decoding, narrow ones make more blocks: what fills the card counts first.
  // Which is taken changes no sum.
  const int64_t wide_tiles = CeilDiv(p.c.rows, 256) * CeilDiv(p.c.cols, kTileRows);
  const bool wide = p.c.rows > 128 && wide_tiles >= context.card.multiprocessors;
  const int token_box = wide ? 256 : 128;
  const auto map = [&](const ConstTensor& t, int rows) {
    return gpu::MakeTensorMap(context.launcher, name, t, rows);
  };
  p.tokens = map(tokens, token_box);
  // sum = ((t₀ · s₀/s₁ + t₁) · s₁/s₂ + t₂) · s₂ + base
  for (size_t i = 0; i < terms.size(); ++i) {
    Adapter& adapter = p.adapters[p.adapter_count++];
    adapter.tokens = map(terms[i].tokens, token_box);
    adapter.weight = map(terms[i].weight, kBackward ? kTileDepth : kTileRows);
    adapter.depth = int(terms[i].tokens.cols);
    adapter.after = i + 1 < terms.size() ? terms[i].scale / terms[i + 1].scale : terms[i].scale;
  }
  if (wide) {
    LaunchTokens<Config<256, kBackward>>(name, p, context);
  } else {
    LaunchTokens<Config<128, kBackward>>(name, p, context);
  }
}

Arguments ArgumentsOf(const LinearBase& base, const LiveRows& live, const Tensor& c) {
  Arguments p = {};
  p.base = DecodeSourceOf(base.quantized);
  p.weight_rows = base.out_features;
  p.weight_blocks = base.in_features / kAtomColumns;
  p.live = live;
  p.c = c;
  return p;
}

}  // namespace
}  // namespace hopper

bool IsHopperProduct(const LinearForward& op, const gpu::Properties& card) {
  if (!hopper::HasInstructions(card) || op.adapters.size() > hopper::kMaxAdapters) return false;
  if (!hopper::IsDecodable(op.base) || !hopper::IsMap(op.x)) return false;
  if (op.y.dtype != DType::kBf16 || !IsAligned(op.y, 16)) return false;
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& s = op.adapters[i];
    const float scale = std::fabs(s.scale);
    // Ratios of scales stay far from the ends of fp32.
    if (s.rows.cols != 0 || !(scale >= 0x1p-30f && scale <= 0x1p30f)) return false;
    if (s.a.rows > 0 && (!hopper::IsMap(s.b) || !hopper::IsMap(LowOf(op, i)))) return false;
  }
  return true;
}

bool IsHopperProduct(const LinearBackwardInput& op, const gpu::Properties& card) {
  if (!hopper::HasInstructions(card) || op.adapters.size() > hopper::kMaxAdapters) return false;
  if (!hopper::IsDecodable(op.base) || !hopper::IsMap(op.dy)) return false;
  if (op.dx.cols == 0 || op.dx.dtype != DType::kBf16 || !IsAligned(op.dx, 16)) return false;
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& s = op.adapters[i];
    if (s.rows.cols != 0 || s.dropout.probability > 0) return false;
    if (s.a.rows > 0 && (!hopper::IsMap(s.a) || !hopper::IsMap(op.up[i]))) return false;
  }
  return true;
}

void RunHopperProduct(const LinearForward& op, const Context& context) {
  std::vector<hopper::Term> terms;
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& segment = op.adapters[i];
    if (segment.a.rows == 0) continue;
    if (!segment.IsLowGiven()) {
      RunFirstProduct(LinearForward::kName, op.x, FirstProductOf(op, i), op.live_rows, context);
    }
    terms.push_back({LowOf(op, i), segment.b, segment.scale});
  }
  hopper::Arguments p = hopper::ArgumentsOf(op.base, op.live_rows, op.y);
  p.depth = op.base.in_features;
  p.bias = op.bias;
  hopper::Run</*kBackward=*/false>(LinearForward::kName, p, op.x, terms, context);
}

void RunHopperProduct(const LinearBackwardInput& op, const Context& context) {
  std::vector<hopper::Term> terms;
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& segment = op.adapters[i];
    if (segment.a.rows == 0) continue;
    Product up;
    up.rows = op.dy.rows;
    up.columns = segment.a.rows;
    up.live = PointerOf(op.live_rows);
    up.alpha = segment.scale;
    up.c = op.up[i];
    ProductTerm* down = AddTerm(&up, context);
    down->a = DenseOperand(op.dy, false);
    down->b = DenseOperand(segment.b, true);
    down->depth = op.base.out_features;
    RunProduct(LinearBackwardInput::kName, up, /*bf16=*/true, context);
    terms.push_back({op.up[i], segment.a, 1.0f});  // `up` holds the scale already
  }
  hopper::Arguments p = hopper::ArgumentsOf(op.base, op.live_rows, op.dx);
  p.depth = op.base.out_features;
  p.accumulate = op.accumulate;
  hopper::Run</*kBackward=*/true>(LinearBackwardInput::kName, p, op.dy, terms, context);
}

}  // namespace qlora::kernels::cuda
