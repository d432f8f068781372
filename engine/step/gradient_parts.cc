#include "engine/step/gradient_parts.h"

#include <algorithm>
#include <type_traits>

namespace qlora::engine {
namespace {

// More would start more collectives, each with its latency, to hide a smaller rest: behind backward
// stands the sum of the last part alone.
constexpr int64_t kMostParts = 8;

// By parameter: the index behind the last op that writes its gradient; 0 where none does.
std::vector<int64_t> FinishedBefore(const ParameterSpace& space, kernels::ConstTensor gradient,
                                    const PieceProgram& piece) {
  std::vector<int64_t> finished(space.parameters().size(), 0);
  for (int64_t i = 0; i < int64_t(piece.ops.size()); ++i) {
    kernels::VisitTensors(piece.ops[i], [&](const char*, const auto& view) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(view)>, kernels::Tensor>) {
        if (view.data == nullptr) return;
        if (Program::IdOf(view.data) != Program::IdOf(gradient.data)) return;
        const int64_t offset = Program::OffsetOf(view.data) / kernels::SizeOf(kernels::DType::kF32);
        finished[space.IndexAt(offset)] = i + 1;
      }
    });
  }
  return finished;
}

}  // namespace

Shares SharesIn(const GradientPart& part, Shares all) {
  for (int64_t& begin : all) begin = std::clamp(begin - part.begin, int64_t{0}, part.count);
  return all;
}

std::vector<GradientPart> DivideGradient(const ParameterSpace& space, kernels::ConstTensor gradient,
                                         int64_t least_count, PieceProgram* micro_batch) {
  const std::vector<int64_t> finished = FinishedBefore(space, gradient, *micro_batch);
  const int64_t least = std::max(least_count, (space.size() + kMostParts - 1) / kMostParts);
  std::vector<GradientPart> parts;
  int64_t end = space.size(), before = 0;
  for (int64_t p = int64_t(finished.size()) - 1; p >= 0; --p) {
    before = std::max(before, finished[p]);
    const int64_t begin = space.parameters()[p].offset;
    // What is left must make a part too.
    if (p > 0 && (end - begin < least || begin < least)) continue;
    micro_batch->moves.push_back({p == 0 ? int64_t(micro_batch->ops.size()) : before,
                                  Move::Kind::kSum, int64_t(parts.size())});
    parts.push_back({begin, end - begin});
    end = begin;
  }
  return parts;
}

}  // namespace qlora::engine
