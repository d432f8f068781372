// Every op there is, once. Backends, the tests' cases and the benchmarks are generated from this
// list: an op without an implementation does not link, an op without cases does not compile.

#ifndef QLORA_KERNELS_OP_LIST_H_
#define QLORA_KERNELS_OP_LIST_H_

#include <type_traits>
#include <variant>

#include "kernels/ops/adamw.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/gated_activation.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/linear_cross_entropy.h"
#include "kernels/ops/quantize.h"
#include "kernels/ops/reduce.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/rope.h"

// clang-format off
#define QLORA_FOR_EACH_OP(X)                                                                    \
  X(EmbeddingForward) X(EmbeddingBackward)                                                      \
  X(RmsNormForward) X(RmsNormBackward)                                                          \
  X(Rope)                                                                                       \
  X(LinearForward) X(LinearBackwardInput) X(LinearBackwardAdapter) X(LinearBackwardWeight)      \
  X(AttentionForward) X(AttentionBackward) X(KvAppend)                                          \
  X(GatedActivationForward) X(GatedActivationBackward)                                          \
  X(LinearCrossEntropy)                                                                         \
  X(AdamW)                                                                                      \
  X(NormAndFinite) X(ContentHash) X(AddGradient) X(Zero) X(GradientScale)                       \
  X(Quantize) X(Dequantize) X(Pack) X(Unpack)
// clang-format on

namespace qlora::kernels {

namespace internal {
template <class Unused, class... Ops>
struct OpVariant {
  using Type = std::variant<Ops...>;
};
#define QLORA_COMMA_OP(OpType) , OpType
using AllOps = OpVariant<void QLORA_FOR_EACH_OP(QLORA_COMMA_OP)>;
#undef QLORA_COMMA_OP
}  // namespace internal

using Op = internal::AllOps::Type;

// Calls f(name, view) for every operand of an op; a `ConstTensor` is read, a `Tensor` is written
// (and read, where the op's header says that it adds to it). Empty views are visited too.
template <class OpOrConstOp, class F>
void VisitTensors(OpOrConstOp& op, F&& f) {
  std::visit([&](auto& o) { std::remove_cvref_t<decltype(o)>::Visit(o, f); }, op);
}

inline const char* NameOf(const Op& op) {
  return std::visit([](const auto& o) { return std::remove_cvref_t<decltype(o)>::kName; }, op);
}
inline double FlopsOf(const Op& op) {
  return std::visit([](const auto& o) { return Flops(o); }, op);
}
inline double BytesOf(const Op& op) {
  return std::visit([](const auto& o) { return Bytes(o); }, op);
}
// Whether an op names the vendor's library as the one to compute it.
inline bool AsksForLibrary(const Op& op) {
  return std::visit(
      [](const auto& o) {
        if constexpr (requires { o.shape.kernel; }) {
          return o.shape.kernel == AttentionKernel::kLibrary;
        }
        return false;
      },
      op);
}

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_OP_LIST_H_
