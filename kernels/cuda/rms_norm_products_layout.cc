#include "kernels/cuda/rms_norm_products_layout.h"

#include <algorithm>
#include <variant>

#include "kernels/cuda/views.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kVectorElements = 8;  // of bf16 in 16 bytes
// Up to this a decoder's step: linear_skinny.cu makes the products with a block for each row of A,
// where one tile of rows would leave all but one multiprocessor idle.
constexpr int64_t kFewRows = 16;

bool HasVectors(const RmsNormForward& op) {
  return op.x.dtype == DType::kBf16 && op.x.cols % kVectorElements == 0 && op.rows_per_token == 1;
}

}  // namespace

NormTile NormTileOf(int64_t cols, const gpu::Properties& card) {
  // Eight lanes read 16 bytes of two neighbouring rows at a time: half of the banks apart.
  constexpr int64_t kBankElements = 64;
  const int64_t pitch = AlignUp(cols, kBankElements) + kBankElements / 2;
  for (const int rows : {16, 8}) {
    const int64_t bytes = rows * (pitch * 2 + kNormProductWarps * 16 * int64_t{sizeof(float)});
    if (bytes <= card.shared_bytes) return {rows, pitch, bytes};
  }
  return {};
}

bool HasAlignedRows(const RmsNormForward& op) {
  return IsAligned(op.x, 16) && IsAligned(op.residual, 16) && IsAligned(op.sum, 16) &&
         IsAligned(op.y, 16);
}

bool IsNormWithProducts(const RmsNormForward& op, const gpu::Properties& card) {
  if (op.products.empty() || op.products.size() > kMaxNormProducts || !HasVectors(op)) return false;
  return HasAlignedRows(op) && NormTileOf(op.x.cols, card).rows > 0 &&
         std::all_of(op.products.begin(), op.products.end(),
                     [](const FirstProduct& p) { return IsAligned(p.a, 16); });
}

// Apart, a product reads its rows of K elements from memory again; along, A from the second-level
// cache for each tile: r · K elements for every `tile` rows. So it pays up to r = tile · (rate of
// that cache / rate of memory). That ratio is 1.4 on an H200, 2 on an H100, 3 to 5 on cards of the
// other kinds (by published microbenchmarks; not measured here).
int64_t FirstProductRankOf(const Op& op, const gpu::Properties& card) {
  const auto* norm = std::get_if<RmsNormForward>(&op);
  if (norm == nullptr || !HasVectors(*norm) || norm->x.rows <= kFewRows) return 0;
  const bool has_fast_memory = card.major == 9 || card.major == 10;
  return NormTileOf(norm->x.cols, card).rows * (has_fast_memory ? 3 : 6) / 2;
}

}  // namespace qlora::kernels::cuda
