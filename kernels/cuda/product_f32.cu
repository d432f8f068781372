#include "kernels/cuda/product_kernels.h"

namespace qlora::kernels::cuda {
namespace {

// A tile of 64×64 results, 4×4 a thread; operands pass through shared memory 16 of depth at a time.
constexpr int kTile = 64, kDepth = 16, kThreads = 256, kPerThread = 4;
constexpr int kPitch = kTile + 4;  // of a stored row [depth][outer]: keeps 16-byte alignment

// Loads [depth][outer] of an operand; zeros outside the bounds and where dropout drops.
QLORA_DEVICE void FillTile(const Product& p, const Operand& o, const Mask& mask, bool mask_by_depth,
                           int64_t first, Range outer, int64_t first_k, Range depth,
                           gpu::Shared<float> tile) {
  for (int i = gpu::ThreadX(); i < kTile * kDepth; i += kThreads) {
    // Neighbouring threads take neighbouring addresses, whichever way the operand lies.
    const int j = o.transposed ? i % kTile : i / kDepth, k = o.transposed ? i / kTile : i % kDepth;
    const int64_t at = first + j, at_k = first_k + k;
    float x = 0.0f;
    if (at >= outer.begin && at < outer.end && at_k >= depth.begin && at_k < depth.end) {
      x = ElementOf(p, o, at, at_k);
      if (mask.threshold > 0 &&
          !IsKept(mask, mask_by_depth ? at_k : at, mask_by_depth ? at : at_k)) {
        x = 0.0f;
      }
    }
    tile[k * kPitch + j] = x;
  }
}

QLORA_KERNEL void F32Product(Product p) {
  gpu::SharedMemory memory;
  gpu::Shared<float> a_tile = memory.Take<float>(kDepth * kPitch);
  gpu::Shared<float> b_tile = memory.Take<float>(kDepth * kPitch);
  const ProductBounds bounds = BoundsOf(p);
  const int64_t row0 = gpu::BlockX() * kTile, column0 = gpu::BlockY() * kTile;
  if (row0 >= bounds.rows.end || row0 + kTile <= bounds.rows.begin) return;
  const int row = gpu::ThreadX() / 16 * kPerThread, column = gpu::ThreadX() % 16 * kPerThread;
  float sum[kPerThread][kPerThread] = {};
  for (int t = 0; t < p.term_count; ++t) {
    const ProductTerm& term = p.terms[t];
    const TermBounds within = BoundsOf(p, term, bounds.live);
    if (row0 >= within.rows.end || row0 + kTile <= within.rows.begin) continue;
    float part[kPerThread][kPerThread] = {};
    for (int64_t k0 = within.depth.begin; k0 < within.depth.end; k0 += kDepth) {
      gpu::SyncThreads();
      FillTile(p, term.a, term.mask_a, false, row0, within.rows, k0, within.depth, a_tile);
      FillTile(p, term.b, term.mask_b, true, column0, {0, p.columns}, k0, within.depth, b_tile);
      gpu::SyncThreads();
      for (int k = 0; k < kDepth; ++k) {
        float a[kPerThread], b[kPerThread];
        QLORA_UNROLL
        for (int i = 0; i < kPerThread; ++i) {
          a[i] = a_tile[k * kPitch + row + i];
          b[i] = b_tile[k * kPitch + column + i];
        }
        QLORA_UNROLL
        for (int i = 0; i < kPerThread; ++i) {
          QLORA_UNROLL
          for (int j = 0; j < kPerThread; ++j) part[i][j] = fmaf(a[i], b[j], part[i][j]);
        }
      }
    }
    QLORA_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      QLORA_UNROLL
      for (int j = 0; j < kPerThread; ++j) {
        const bool kept = term.mask_sum.threshold == 0 ||
                          IsKept(term.mask_sum, row0 + row + i, column0 + column + j);
        if (kept) sum[i][j] = fmaf(term.scale, part[i][j], sum[i][j]);
      }
    }
  }
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t r = row0 + row + i;
    if (r < bounds.rows.begin || r >= bounds.rows.end) continue;
    for (int j = 0; j < kPerThread; ++j) {
      if (column0 + column + j < p.columns) StoreResult(p, r, column0 + column + j, sum[i][j]);
    }
  }
}

}  // namespace

void LaunchF32Product(const char* name, const Product& product, int64_t slabs,
                      const Context& context) {
  gpu::Launch(context.launcher, name, &F32Product,
              {.blocks_x = CeilDiv(product.rows, kTile),
               .blocks_y = CeilDiv(product.columns, kTile),
               .blocks_z = slabs,
               .threads = kThreads,
               .shared_bytes = 2 * kDepth * kPitch * 4},
              product);
}

}  // namespace qlora::kernels::cuda
