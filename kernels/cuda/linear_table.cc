#include "kernels/cuda/linear_table.h"

#include <variant>

#include "kernels/cuda/linear_dequantized_layout.h"

namespace qlora::kernels::cuda {
namespace {

// Writing a 4-bit weight out costs the same whatever the number of rows M: about 300/M of a bf16
// product's time on an H100 (716 TFLOP/s, 3.0 TB/s), 200/M on an A100 (250 TFLOP/s, 1.6 TB/s). The
// fused product decodes instead, but by mma.sync reaches 0.4 of the library's rate on the former
// (wgmma alone does more) and 0.7 on the latter, at best. From these many rows on the library wins;
// figures of a cost model, not yet measured.
int64_t FewestRowsForTheLibrary(const gpu::Properties& card) { return card.major >= 9 ? 256 : 512; }

template <class LinearOp>
std::vector<LinearVariant> Variants(const LinearOp& op, int64_t rows, const gpu::Properties& card) {
  using enum LinearVariant;
  if (!IsDequantizable(op)) return {kFused};
  const int64_t fewest =
      op.base.kind == LinearBase::Kind::kDense ? 17 : FewestRowsForTheLibrary(card);
  if (rows >= fewest) return {kDequantized, kFused};
  return {kFused, kDequantized};
}

}  // namespace

std::vector<LinearVariant> TableVariants(const Op& op, const gpu::Properties& card,
                                         bool has_library) {
  if (!has_library) return {LinearVariant::kFused};
  if (const auto* forward = std::get_if<LinearForward>(&op)) {
    return Variants(*forward, forward->x.rows, card);
  }
  if (const auto* backward = std::get_if<LinearBackwardInput>(&op)) {
    return Variants(*backward, backward->dy.rows, card);
  }
  return {LinearVariant::kFused};
}

int64_t TailColumnsOf(const Op& op) {
  return std::visit(
      [](const auto& o) -> int64_t {
        if constexpr (requires { o.tail; }) {
          if (o.variant == LinearVariant::kDequantized) return DequantizedTailColumns(o.adapters);
        }
        return 0;
      },
      op);
}

}  // namespace qlora::kernels::cuda
