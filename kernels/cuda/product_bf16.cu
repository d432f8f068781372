#include "kernels/cuda/fragments.h"
#include "kernels/cuda/product_kernels.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kDepth = 32;  // of one step through shared memory: two mma.sync deep
constexpr int kChunk = 8;   // elements of one 16-byte move
constexpr int kPad = 8;     // elements behind a stored row: its pitch, in 16-byte units, is odd,
                            // so the eight rows of an ldmatrix lie in different banks
constexpr int kRowPitch = kDepth + kPad;

// How a tile of C is shared out: kWarpsM × kWarpsN warps of (16 · kM) × (8 · kN) results each. kN
// is even: an ldmatrix brings two columns of fragments.
template <int kWarpsM_, int kWarpsN_, int kM_, int kN_>
struct Tile {
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kM = kM_, kN = kN_;
  static constexpr int kRows = kWarpsM * kM * 16, kColumns = kWarpsN * kN * 8;
  static constexpr int kThreads = kWarpsM * kWarpsN * 32;
  // Either way round: [outer][depth] or [depth][outer].
  static constexpr int Elements(int outer) {
    return outer * kRowPitch > kDepth * (outer + kPad) ? outer * kRowPitch
                                                       : kDepth * (outer + kPad);
  }
  static constexpr int kA = Elements(kRows), kB = Elements(kColumns);
  static constexpr int kSharedBytes = 2 * 2 * (kA + kB) + 4 * kValueTableFloats;
};

// Eight weights of one stored row from `column` on, as bf16(value · scale).
QLORA_DEVICE gpu::Words4 DecodeChunk(const Product& p, const Operand& o, int64_t row,
                                     int64_t column, gpu::Shared<float> table) {
  const int64_t first = row * o.pitch + column;
  const float scale = BlockScale(p.base, first >> p.base.log2_block);
  const uint32_t codes = *reinterpret_cast<const uint32_t*>(p.base.codes + first / 2);
  gpu::Words4 words;
  QLORA_UNROLL
  for (int i = 0; i < 4; ++i) {
    // Byte i holds weights 2i (its high nibble) and 2i + 1.
    const float even = ValueOf(table, codes >> (8 * i + 4) & 15u) * scale;
    const float odd = ValueOf(table, codes >> (8 * i) & 15u) * scale;
    words.w[i] = gpu::PackBf16(even, odd);
  }
  return words;
}

// Fills one tile of an operand: rows [first, first + kOuter) by depth [k0, k0 + kDepth), zeros
// outside the bounds and where dropout drops. Stored as the operand lies in memory.
template <int kOuter, int kThreads>
QLORA_DEVICE void FillTile(const Product& p, const Operand& o, const Mask& mask, bool mask_by_depth,
                           int64_t first, Range outer, int64_t k0, Range depth,
                           gpu::Shared<uint16_t> tile, gpu::Shared<float> table) {
  const int chunks_a_row = o.transposed ? kOuter / kChunk : kDepth / kChunk;
  const int pitch = o.transposed ? kOuter + kPad : kRowPitch;
  const Range rows = o.transposed ? depth : outer, columns = o.transposed ? outer : depth;
  const int64_t row0 = o.transposed ? k0 : first, column0 = o.transposed ? first : k0;
  for (int i = gpu::ThreadX(); i < kOuter * kDepth / kChunk; i += kThreads) {
    const int r = i / chunks_a_row, c = i % chunks_a_row * kChunk;
    const int64_t row = row0 + r, column = column0 + c;
    const gpu::Shared<uint16_t> to = tile + (r * pitch + c);
    const bool row_in = row >= rows.begin && row < rows.end;
    const bool all_in = row_in && column >= columns.begin && column + kChunk <= columns.end;
    const bool none_in = !row_in || column >= columns.end || column + kChunk <= columns.begin;
    if (o.vector && mask.threshold == 0 && (all_in || none_in)) {
      if (!o.quantized && o.dtype == DType::kBf16) {
        const void* from = static_cast<const uint16_t*>(o.data) + row * o.pitch + column;
        // Not dereferenced where not valid, but an address of the operand all the same.
        gpu::CopyAsync16(to, all_in ? from : o.data, all_in);
        continue;
      }
      if (o.quantized) {
        to.As<gpu::Words4>()[0] =
            all_in ? DecodeChunk(p, o, row, column, table) : gpu::Words4{{0, 0, 0, 0}};
        continue;
      }
    }
    for (int j = 0; j < kChunk; ++j) {
      const int64_t at = column + j;
      float x = 0.0f;
      if (row_in && at >= columns.begin && at < columns.end) {
        const int64_t at_outer = o.transposed ? at : row, at_k = o.transposed ? row : at;
        x = ElementOf(p, o, at_outer, at_k);
        if (mask.threshold > 0 &&
            !IsKept(mask, mask_by_depth ? at_k : at_outer, mask_by_depth ? at_outer : at_k)) {
          x = 0.0f;
        }
      }
      to[j] = gpu::ToBf16(x);
    }
  }
}

// One step's products onto the sums. A term with a scale or a mask of its own goes by way of a
// partial sum, four results at a time.
template <class T>
QLORA_DEVICE void MultiplyStep(const ProductTerm& term, gpu::Shared<uint16_t> a_tile,
                               gpu::Shared<uint16_t> b_tile, int64_t row0, int64_t column0,
                               float (&sum)[T::kM][T::kN][4]) {
  const int row = gpu::Warp() / T::kWarpsN * T::kM * 16;
  const int column = gpu::Warp() % T::kWarpsN * T::kN * 8;
  const int a_pitch = term.a.transposed ? T::kRows + kPad : kRowPitch;
  const int b_pitch = term.b.transposed ? T::kColumns + kPad : kRowPitch;
  const bool plain = term.scale == 1.0f && term.mask_sum.threshold == 0;
  if (plain) {
    QLORA_UNROLL
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t a[T::kM][4];
      QLORA_UNROLL
      for (int m = 0; m < T::kM; ++m) {
        LoadA(a[m], a_tile, term.a.transposed, a_pitch, row + 16 * m, k);
      }
      QLORA_UNROLL
      for (int n = 0; n < T::kN; n += 2) {
        uint32_t b[4];
        LoadB(b, b_tile, term.b.transposed, b_pitch, column + 8 * n, k);
        const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
        QLORA_UNROLL
        for (int m = 0; m < T::kM; ++m) {
          gpu::MatrixMultiplyAdd(sum[m][n], a[m], left);
          gpu::MatrixMultiplyAdd(sum[m][n + 1], a[m], right);
        }
      }
    }
    return;
  }
  QLORA_UNROLL
  for (int n = 0; n < T::kN; n += 2) {
    QLORA_UNROLL
    for (int m = 0; m < T::kM; ++m) {
      float part[2][4] = {};
      QLORA_UNROLL
      for (int k = 0; k < kDepth; k += 16) {
        uint32_t a[4], b[4];
        LoadA(a, a_tile, term.a.transposed, a_pitch, row + 16 * m, k);
        LoadB(b, b_tile, term.b.transposed, b_pitch, column + 8 * n, k);
        const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
        gpu::MatrixMultiplyAdd(part[0], a, left);
        gpu::MatrixMultiplyAdd(part[1], a, right);
      }
      QLORA_UNROLL
      for (int h = 0; h < 2; ++h) {
        QLORA_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int64_t r = row0 + row + 16 * m + gpu::Lane() / 4 + i / 2 * 8;
          const int64_t c = column0 + column + 8 * (n + h) + gpu::Lane() % 4 * 2 + i % 2;
          const bool kept = term.mask_sum.threshold == 0 || IsKept(term.mask_sum, r, c);
          if (kept) sum[m][n + h][i] = fmaf(term.scale, part[h][i], sum[m][n + h][i]);
        }
      }
    }
  }
}

// Where the walk over terms and their depth stands.
struct Step {
  int term;
  int64_t k;
  TermBounds within;
};
// The first step of `step.term` or of the next term that this tile has; term_count: none.
QLORA_DEVICE void FindTerm(const Product& p, int64_t row0, int rows, int64_t live, Step& step) {
  for (; step.term < p.term_count; ++step.term) {
    step.within = BoundsOf(p, p.terms[step.term], live);
    const Range& r = step.within.rows;
    if (row0 >= r.end || row0 + rows <= r.begin) continue;
    if (step.within.depth.begin >= step.within.depth.end) continue;
    // Where depth runs along stored rows steps begin at multiples of 8, so that whole chunks stay
    // whole; where it runs across them, at the range's own first, so that what stands before the
    // range changes no byte.
    const ProductTerm& term = p.terms[step.term];
    const bool across = term.a.transposed && term.b.transposed;
    step.k = across ? step.within.depth.begin : step.within.depth.begin / kChunk * kChunk;
    return;
  }
}

template <class T>
QLORA_KERNEL void QLORA_LAUNCH_BOUNDS(T::kThreads, 1) Bf16Product(Product p) {
  gpu::SharedMemory memory;
  gpu::Shared<uint16_t> a_tiles = memory.Take<uint16_t>(2 * T::kA);
  gpu::Shared<uint16_t> b_tiles = memory.Take<uint16_t>(2 * T::kB);
  gpu::Shared<float> table = memory.Take<float>(kValueTableFloats);
  const ProductBounds bounds = BoundsOf(p);
  const int64_t row0 = gpu::BlockX() * T::kRows, column0 = gpu::BlockY() * T::kColumns;
  if (row0 >= bounds.rows.end || row0 + T::kRows <= bounds.rows.begin) return;
  FillValueTable(p.base, table);
  gpu::SyncThreads();

  float sum[T::kM][T::kN][4] = {};
  const auto fill = [&](const Step& step, int stage) {
    const ProductTerm& term = p.terms[step.term];
    FillTile<T::kRows, T::kThreads>(p, term.a, term.mask_a, false, row0, step.within.rows, step.k,
                                    step.within.depth, a_tiles + stage * T::kA, table);
    FillTile<T::kColumns, T::kThreads>(p, term.b, term.mask_b, true, column0, {0, p.columns},
                                       step.k, step.within.depth, b_tiles + stage * T::kB, table);
    gpu::CopyAsyncCommit();
  };
  // Two stages: while one is multiplied the next is on its way.
  Step step = {0, 0, {}};
  FindTerm(p, row0, T::kRows, bounds.live, step);
  if (step.term < p.term_count) fill(step, 0);
  for (int stage = 0; step.term < p.term_count; stage ^= 1) {
    const int term = step.term;
    gpu::CopyAsyncWait<0>();
    gpu::SyncThreads();
    step.k += kDepth;
    if (step.k >= step.within.depth.end) {
      ++step.term;
      FindTerm(p, row0, T::kRows, bounds.live, step);
    }
    if (step.term < p.term_count) fill(step, stage ^ 1);
    MultiplyStep<T>(p.terms[term], a_tiles + stage * T::kA, b_tiles + stage * T::kB, row0, column0,
                    sum);
  }

  QLORA_UNROLL
  for (int m = 0; m < T::kM; ++m) {
    QLORA_UNROLL
    for (int n = 0; n < T::kN; ++n) {
      QLORA_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int64_t r =
            row0 + gpu::Warp() / T::kWarpsN * T::kM * 16 + 16 * m + gpu::Lane() / 4 + i / 2 * 8;
        const int64_t c =
            column0 + gpu::Warp() % T::kWarpsN * T::kN * 8 + 8 * n + gpu::Lane() % 4 * 2 + i % 2;
        if (r >= bounds.rows.begin && r < bounds.rows.end && c < p.columns) {
          StoreResult(p, r, c, sum[m][n][i]);
        }
      }
    }
  }
}

template <class T>
void LaunchTile(const char* name, const Product& product, int64_t slabs, const Context& context) {
  gpu::Launch(context.launcher, name, &Bf16Product<T>,
              {.blocks_x = CeilDiv(product.rows, T::kRows),
               .blocks_y = CeilDiv(product.columns, T::kColumns),
               .blocks_z = slabs,
               .threads = T::kThreads,
               .shared_bytes = T::kSharedBytes},
              product);
}

}  // namespace

void LaunchBf16Product(const char* name, const Product& product, int64_t slabs,
                       const Context& context) {
  // Narrow results (an adapter's rank on one side) would leave most of a wide tile idle.
  if (product.columns <= 16) {
    LaunchTile<Tile<4, 1, 1, 2>>(name, product, slabs, context);  // 64 × 16
  } else if (product.rows <= 16) {
    LaunchTile<Tile<1, 4, 1, 2>>(name, product, slabs, context);  // 16 × 64
  } else if (product.rows <= 64 || product.columns <= 64) {
    LaunchTile<Tile<2, 2, 2, 4>>(name, product, slabs, context);  // 64 × 64
  } else {
    LaunchTile<Tile<2, 4, 4, 4>>(name, product, slabs, context);  // 128 × 128
  }
}

}  // namespace qlora::kernels::cuda
