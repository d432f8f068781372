#include "kernels/cpu/product.h"

#include <algorithm>
#include <cstring>

#include "kernels/philox.h"
#include "quant/codebook.h"
#include "quant/dynamic_map.h"

namespace qlora::kernels::cpu {
namespace {

// Depth of the B slice that a tile packs at a time: with 32 columns it fills two thirds of a 48 KB
// L1.
constexpr int64_t kDepthWords = 256;
// Columns of a tile.
constexpr int64_t kTileColumns = 128;
// A tile of fewer multiply-adds than this is not worth a thread's wake-up (about 10 µs of work).
constexpr double kSmallTile = 512 * 1024;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// A worker's scratch, cut up. 560 rows and 16 of padding × 128 columns of sums, twice: 1.2 MB in
// all.
struct Scratch {
  static constexpr int64_t kSums = (kChunkRows + 16) * kTileColumns;
  float sums[kSums];
  float term_sums[kSums];
  uint32_t panels[kTileColumns * kDepthWords];
  float rows[kTileColumns * kDepthWords * 2];
  float tile[16 * 64];
  float bias[kTileColumns];
};
static_assert(sizeof(Scratch) <= ThreadPool::kScratchBytes);

struct PackedTerm {
  const ProductTerm* term;
  const GemmKernels* kernels;
  GemmKernels::Micro micro;
  int64_t begin, end;  // rows of C
  int64_t words;
  // Of the chunk:
  int64_t chunk_begin, chunk_end;  // rows of C in it
  uint32_t* packed;                // [panel][words][mr], panel 0 at chunk_begin
};

const uint8_t* ByteRow(const ConstTensor& t, int64_t row, int64_t column) {
  return static_cast<const uint8_t*>(t.data) + (row * t.pitch + column) * SizeOf(t.dtype);
}

// The storage of rows [row, …) × depth [k, …) of an operand; index, where there is one, moves
// along.
PackArgs StorageOf(const GemmOperand& operand, int64_t row, int64_t k) {
  PackArgs args;
  const int64_t storage_row = operand.transposed ? k : row;
  const int64_t column = operand.transposed ? row : k;
  args.base = ByteRow(operand.dense, operand.index != nullptr ? 0 : storage_row, column);
  args.index = operand.index != nullptr ? operand.index + storage_row : nullptr;
  args.pitch_bytes = operand.dense.pitch * SizeOf(operand.dense.dtype);
  args.dtype = operand.dense.dtype;
  return args;
}

void Drop(const DropoutView& drop, const GemmKernels& kernels, int64_t row, int64_t column,
          int64_t count, float kept_scale, float* x) {
  kernels.drop(drop.args, uint64_t(row * drop.columns + column), count, kept_scale, x);
}

// Packs the panel of A that begins at row `row` of its operand; `rows_scratch` holds mr ×
// kDepthWords × 2 fp32.
void PackA(const PackedTerm& packed, int64_t row, int64_t valid, uint32_t* panel,
           int64_t first_word, int64_t words, float* rows_scratch) {
  const ProductTerm& term = *packed.term;
  const GemmKernels& kernels = *packed.kernels;
  const int64_t k = first_word * kernels.k_per_word;
  const int64_t depth = std::min(words * kernels.k_per_word, term.a.depth - k);
  PackArgs args = StorageOf(term.a, row, k);
  args.round = term.round_to_bf16;
  args.scale = term.scale;
  args.depth = depth;
  args.valid = int(valid);
  args.width = packed.micro.mr;
  args.panel = panel + first_word * packed.micro.mr;
  if (term.drop_a != nullptr) {
    for (int64_t i = 0; i < valid; ++i) {
      float* out = rows_scratch + i * depth;
      const int64_t storage = args.index != nullptr ? args.index[i] : i;
      kernels.widen(args.base + storage * args.pitch_bytes, args.dtype, depth, args.round, out);
      Drop(*term.drop_a, kernels, row + i, k, depth, 1.0f, out);
    }
    args.base = reinterpret_cast<const uint8_t*>(rows_scratch);
    args.pitch_bytes = depth * 4;
    args.index = nullptr;
    args.dtype = DType::kF32;
  }
  (term.a.transposed ? kernels.pack_columns : kernels.pack_rows)(args);
}

// Packs columns [column, column + count) of C, rows of B, into panels of nr, one behind the other.
void PackB(const PackedTerm& packed, int64_t column, int64_t count, int64_t first_word,
           int64_t words, Scratch& scratch) {
  const ProductTerm& term = *packed.term;
  const GemmKernels& kernels = *packed.kernels;
  const int nr = packed.micro.nr;
  const int64_t k = first_word * kernels.k_per_word;
  const int64_t depth = std::min(words * kernels.k_per_word, term.b.depth - k);
  const bool transposed = term.b.transposed;
  const bool by_rows = term.b.quantized != nullptr || term.drop_b != nullptr;
  PackArgs args;
  DecodeSource source;
  if (term.b.quantized != nullptr) {
    source = SourceOf(*term.b.quantized);
  } else {
    args = StorageOf(term.b, column, k);
  }
  if (by_rows && transposed) {
    for (int64_t i = 0; i < depth; ++i) {
      float* out = scratch.rows + i * count;
      if (term.b.quantized != nullptr) {
        kernels.decode(source, (k + i) * term.b.rows + column, count, term.round_to_bf16, out);
      } else {
        const int64_t storage = args.index != nullptr ? args.index[i] : i;
        kernels.widen(args.base + storage * args.pitch_bytes, args.dtype, count, term.round_to_bf16,
                      out);
        Drop(*term.drop_b, kernels, k + i, column, count, 1.0f, out);
      }
    }
    args.base = reinterpret_cast<const uint8_t*>(scratch.rows);
    args.pitch_bytes = count * 4;
    args.index = nullptr;
    args.dtype = DType::kF32;
  }
  args.round = term.round_to_bf16 && !by_rows;
  args.depth = depth;
  args.width = nr;
  const PackArgs all = args;
  for (int64_t j = 0; j < count; j += nr) {
    args.valid = int(std::min<int64_t>(nr, count - j));
    args.panel = scratch.panels + j * words;
    if (transposed) {
      args.base = all.base + j * SizeOf(args.dtype);
      kernels.pack_columns(args);
      continue;
    }
    if (by_rows) {
      for (int i = 0; i < args.valid; ++i) {
        kernels.decode(source, (column + j + i) * term.b.depth + k, depth, term.round_to_bf16,
                       scratch.rows + i * depth);
      }
      args.base = reinterpret_cast<const uint8_t*>(scratch.rows);
      args.pitch_bytes = depth * 4;
      args.dtype = DType::kF32;
    } else if (all.index != nullptr) {
      args.index = all.index + j;
    } else {
      args.base = all.base + j * args.pitch_bytes;
    }
    kernels.pack_rows(args);
  }
}

// Adds words [first_word, first_word + words) of a term to the sums of C rows [row_begin, row_end)
// of the tile.
void AddSlice(const PackedTerm& packed, int64_t row_begin, int64_t row_end, int64_t columns,
              int64_t first_word, int64_t words, float* sums, Scratch& scratch) {
  const auto [mr, nr, run] = packed.micro;
  const int64_t padded_rows = RoundUp(row_end - row_begin, mr);
  const int64_t pitch = RoundUp(columns, nr);
  const int64_t begin = std::max(row_begin, packed.chunk_begin),
                end = std::min(row_end, packed.chunk_end);
  if (begin >= end) return;
  const int64_t first_panel = (begin - packed.chunk_begin) / mr;
  const int64_t panels = CeilDiv(end - packed.chunk_begin, mr);
  for (int64_t j = 0; j < columns; j += nr) {
    const uint32_t* b = scratch.panels + j * words;
    for (int64_t panel = first_panel; panel < panels; ++panel) {
      const uint32_t* a = packed.packed + (panel * packed.words + first_word) * mr;
      const int64_t row = packed.chunk_begin + panel * mr;  // of C; may lie before this tile
      const int64_t valid_end = std::min(row + mr, packed.chunk_end);
      const bool inside = row >= row_begin && row + mr <= row_begin + padded_rows;
      if (inside && (valid_end == row + mr || valid_end == row_end)) {
        run(words, a, b, sums + (row - row_begin) * pitch + j, pitch);
        continue;
      }
      // The panel covers rows that are not the term's or not this tile's: only its own are taken
      // over.
      const int64_t from = std::max(row, begin), to = std::min(valid_end, end);
      std::memset(scratch.tile, 0, sizeof(float) * mr * nr);
      for (int64_t r = from; r < to; ++r) {
        std::memcpy(scratch.tile + (r - row) * nr, sums + (r - row_begin) * pitch + j,
                    sizeof(float) * nr);
      }
      run(words, a, b, scratch.tile, nr);
      for (int64_t r = from; r < to; ++r) {
        std::memcpy(sums + (r - row_begin) * pitch + j, scratch.tile + (r - row) * nr,
                    sizeof(float) * nr);
      }
    }
  }
}

void RunTile(const Product& product, absl::Span<const PackedTerm> terms, int64_t row_begin,
             int64_t row_end, int64_t column, int64_t columns, const GemmKernels& kernels,
             GemmKernels::Micro micro, Scratch& scratch) {
  const int64_t pitch = RoundUp(columns, micro.nr);
  const int64_t sum_count = RoundUp(row_end - row_begin, micro.mr) * pitch;
  std::memset(scratch.sums, 0, sizeof(float) * sum_count);
  for (const PackedTerm& packed : terms) {
    const ProductTerm& term = *packed.term;
    if (packed.chunk_begin >= row_end || packed.chunk_end <= row_begin) continue;
    float* sums = scratch.sums;
    if (term.drop_sum != nullptr) {
      sums = scratch.term_sums;
      std::memset(sums, 0, sizeof(float) * sum_count);
    }
    for (int64_t word = 0; word < packed.words; word += kDepthWords) {
      const int64_t words = std::min(kDepthWords, packed.words - word);
      PackB(packed, column, columns, word, words, scratch);
      AddSlice(packed, row_begin, row_end, columns, word, words, sums, scratch);
    }
    if (term.drop_sum == nullptr) continue;
    const int64_t end = std::min(row_end, packed.chunk_end);
    for (int64_t row = std::max(row_begin, packed.chunk_begin); row < end; ++row) {
      float* from = sums + (row - row_begin) * pitch;
      float* to = scratch.sums + (row - row_begin) * pitch;
      Drop(*term.drop_sum, kernels, row - packed.begin, column, columns, term.kept_scale, from);
      for (int64_t j = 0; j < columns; ++j) to[j] += from[j];
    }
  }
  FinishArgs finish;
  finish.alpha = terms.empty() ? 1.0f : product.alpha;  // a sum of nothing is +0
  finish.accumulate = product.accumulate;
  finish.count = columns;
  finish.dtype = product.c.dtype;
  if (product.bias) {
    kernels.widen(ByteRow(product.bias, 0, column), product.bias.dtype, columns, false,
                  scratch.bias);
    finish.bias = scratch.bias;
  }
  for (int64_t row = row_begin; row < row_end; ++row) {
    finish.sum = scratch.sums + (row - row_begin) * pitch;
    finish.out = const_cast<uint8_t*>(ByteRow(product.c, row, column));
    kernels.finish(finish);
  }
}

// The micro-tile that wastes least on these shapes.
int ChooseMicro(const GemmKernels& kernels, int64_t rows, int64_t columns) {
  int best = 0;
  double best_cost = 0;
  for (int i = 0; i < GemmKernels::kMicros; ++i) {
    const auto& [mr, nr, run] = kernels.micro[i];
    const double cost = double(RoundUp(rows, mr)) * RoundUp(columns, nr) *
                        (i % 2 == 1 ? 1.03 : 1.0) * (i >= 2 ? 1.15 : 1.0);
    if (i == 0 || cost < best_cost) best = i, best_cost = cost;
  }
  return best;
}

// Runs f on all tiles: on one thread where they are too little work to share.
void RunTiles(ThreadPool& pool, int64_t tiles, bool small, ThreadPool::Function f) {
  if (!small) return pool.Run(tiles, f);
  pool.Run(1, [&](int64_t, uint8_t* scratch) {
    for (int64_t tile = 0; tile < tiles; ++tile) f(tile, scratch);
  });
}

}  // namespace

int64_t ProductWorkspaceBytes(int64_t rows, absl::Span<const int64_t> depths) {
  // A chunk's rows are rounded up to panels of at most 14.
  const int64_t panel_rows = std::min(rows, kChunkRows) + 16;
  int64_t words = 0;
  for (int64_t depth : depths) words += depth + 1;
  return rows == 0 ? 0 : panel_rows * words * 4 + 64 * int64_t(depths.size());
}

void RunProduct(const Product& product, void* workspace, ThreadPool& pool,
                const KernelSet& kernels) {
  const int64_t rows = product.rows, columns = product.columns;
  if (rows <= 0 || columns <= 0) return;
  const int choice = ChooseMicro(*kernels.f32, rows, columns);
  const auto [mr, nr, unused] = kernels.f32->micro[choice];

  std::vector<PackedTerm> terms;
  terms.reserve(product.terms.size());
  int64_t depth = 0;
  for (const ProductTerm& term : product.terms) {
    PackedTerm packed = {};
    packed.term = &term;
    // Pairs of bf16 cannot hold a scaled element.
    packed.kernels = term.round_to_bf16 && term.scale == 1.0f ? kernels.bf16 : kernels.f32;
    packed.micro = packed.kernels->micro[choice];
    packed.begin = term.end < 0 ? 0 : term.begin;
    packed.end = std::min(term.end < 0 ? rows : term.end, rows);
    packed.words = CeilDiv(term.a.depth, packed.kernels->k_per_word);
    if (packed.begin >= packed.end || packed.words == 0) continue;
    depth += term.a.depth;
    terms.push_back(packed);
  }

  const int64_t chunks = CeilDiv(rows, kChunkRows);
  const int64_t chunk_rows = RoundUp(CeilDiv(rows, chunks), mr);
  for (int64_t chunk_begin = 0; chunk_begin < rows; chunk_begin += chunk_rows) {
    const int64_t chunk_end = std::min(rows, chunk_begin + chunk_rows);

    // A's panels, in tasks of eight so that lines shared by neighbouring panels are read once.
    constexpr int64_t kGroup = 8;
    uint8_t* next = static_cast<uint8_t*>(workspace);
    std::vector<int64_t> first_task(1, 0);
    for (PackedTerm& packed : terms) {
      packed.chunk_begin = std::max(chunk_begin, packed.begin);
      packed.chunk_end = std::max(packed.chunk_begin, std::min(chunk_end, packed.end));
      packed.packed = reinterpret_cast<uint32_t*>(next);
      const int64_t panels = CeilDiv(packed.chunk_end - packed.chunk_begin, mr);
      next += RoundUp(panels * mr * packed.words * 4, 64);
      first_task.push_back(first_task.back() + CeilDiv(panels, kGroup));
    }
    const double packing = double(chunk_end - chunk_begin) * depth;
    RunTiles(
        pool, first_task.back(), packing < kSmallTile / 8, [&](int64_t task, uint8_t* scratch) {
          const size_t t =
              std::upper_bound(first_task.begin(), first_task.end(), task) - first_task.begin() - 1;
          const PackedTerm& packed = terms[t];
          const int64_t term_rows = packed.chunk_end - packed.chunk_begin;
          const int64_t first = (task - first_task[t]) * kGroup * mr;
          for (int64_t word = 0; word < packed.words; word += kDepthWords) {
            for (int64_t row = first; row < std::min(term_rows, first + kGroup * mr); row += mr) {
              PackA(packed, packed.chunk_begin - packed.begin + row,
                    std::min<int64_t>(mr, term_rows - row), packed.packed + row * packed.words,
                    word, std::min(kDepthWords, packed.words - word),
                    reinterpret_cast<Scratch*>(scratch)->rows);
            }
          }
        });

    // Tiles of C: all rows and kTileColumns, cut further while there are few of them and they are
    // large.
    int64_t tile_rows = RoundUp(chunk_end - chunk_begin, mr), tile_columns = kTileColumns;
    const auto Tiles = [&] {
      return CeilDiv(chunk_end - chunk_begin, tile_rows) * CeilDiv(columns, tile_columns);
    };
    const double work = double(chunk_end - chunk_begin) * columns * std::max<int64_t>(depth, 1);
    while (Tiles() < 16 && work / Tiles() > 2 * kSmallTile) {
      const bool can_rows = tile_rows > mr, can_columns = std::min(tile_columns, columns) > nr;
      if (!can_rows && !can_columns) break;
      if (can_rows && (!can_columns || tile_rows >= tile_columns)) {
        tile_rows = RoundUp(tile_rows / 2, mr);
      } else {
        tile_columns = RoundUp(tile_columns / 2, nr);
      }
    }
    const int64_t column_tiles = CeilDiv(columns, tile_columns);
    RunTiles(pool, Tiles(), work < 2 * kSmallTile, [&](int64_t tile, uint8_t* scratch) {
      const int64_t row = chunk_begin + tile / column_tiles * tile_rows;
      const int64_t column = tile % column_tiles * tile_columns;
      RunTile(product, terms, row, std::min(chunk_end, row + tile_rows), column,
              std::min(tile_columns, columns - column), *kernels.f32, kernels.f32->micro[choice],
              *reinterpret_cast<Scratch*>(scratch));
    });
  }
}

void RunFirstProduct(const ConstTensor& x, const FirstProduct& first, int64_t live, void* workspace,
                     ThreadPool& pool, const KernelSet& kernels) {
  const RowRange range = RangeOf(first.rows, live);
  if (range.begin == range.end || first.a.rows == 0) return;
  ProductTerm term;
  term.a = AsStored(RowsOf(x, range));
  term.b = AsStored(first.a);
  term.round_to_bf16 = x.dtype == DType::kBf16;
  Product product;
  DropoutView drop;
  if (first.dropout.probability > 0) {
    drop = {ArgsOf(first.dropout), x.cols};
    term.drop_a = &drop;
    product.alpha = KeptScale(first.dropout.probability);
  }
  product.rows = range.end - range.begin;
  product.columns = first.a.rows;
  product.terms = absl::MakeConstSpan(&term, 1);
  product.c = SliceRows(first.low, range.begin, product.rows);
  RunProduct(product, workspace, pool, kernels);
}

DecodeSource SourceOf(const QuantizedTensor& q) {
  DecodeSource source;
  source.spec = q.spec;
  source.codes = static_cast<const uint8_t*>(q.codes.data);
  source.values = quant::CodeValues(q.spec.type).data();
  if (!q.spec.double_quant) {
    source.absmax_f32 = static_cast<const float*>(q.absmax.data);
    return source;
  }
  source.absmax_u8 = static_cast<const uint8_t*>(q.absmax.data);
  source.nested_absmax = static_cast<const float*>(q.nested_absmax.data);
  source.offset = q.offset.Scalar<float>();
  source.map = q.map ? static_cast<const float*>(q.map.data) : quant::SignedDynamicMap().data();
  return source;
}

DropoutArgs ArgsOf(const Dropout& dropout) {
  return {static_cast<const int32_t*>(dropout.counter.data), dropout.key,
          DropoutThreshold(dropout.probability)};
}

RowRange RangeOf(const ConstTensor& rows, int64_t live) {
  if (!rows) return {0, live};
  const int32_t* range = static_cast<const int32_t*>(rows.data);
  const int64_t begin = std::clamp<int64_t>(range[0], 0, live);
  return {begin, std::clamp<int64_t>(range[1], begin, live)};
}

int64_t LiveRowsOf(const LiveRows& live, int64_t capacity) {
  return live ? std::clamp<int64_t>(live.Scalar<int32_t>(), 0, capacity) : capacity;
}

}  // namespace qlora::kernels::cpu
