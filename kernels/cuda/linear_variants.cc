#include "kernels/cuda/linear_variants.h"

#include <variant>

#include "kernels/cuda/dense_matmul.h"
#include "kernels/cuda/hopper_product.h"
#include "kernels/cuda/linear_table.h"

namespace qlora::kernels::cuda {

std::vector<LinearVariant> VariantsOf(const Op& op, const gpu::Properties& card) {
  std::vector<LinearVariant> variants = TableVariants(op, card, gpu::LoadDenseMatmul().ok());
  std::visit(
      [&](const auto& o) {
        if constexpr (requires { IsHopperProduct(o, card); }) {
          // Never the table's choice before it has passed on a card.
          if (IsHopperProduct(o, card)) variants.push_back(LinearVariant::kHopper);
        }
      },
      op);
  return variants;
}

}  // namespace qlora::kernels::cuda
