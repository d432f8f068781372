// The flat gradient in parts that backward finishes one after another, so that each is summed over
// ranks while backward makes the next ones.

#ifndef QLORA_ENGINE_STEP_GRADIENT_PARTS_H_
#define QLORA_ENGINE_STEP_GRADIENT_PARTS_H_

#include <cstdint>
#include <vector>

#include "engine/comm/comm.h"
#include "engine/optim/parameter_space.h"
#include "engine/record/program.h"

namespace qlora::engine {

// Elements [begin, begin + count) of the flat space.
struct GradientPart {
  int64_t begin = 0, count = 0;
};
// Its elements in a flat [1, n] view.
inline kernels::Tensor PartOf(kernels::Tensor flat, const GradientPart& part) {
  return kernels::Slice(flat, 0, 1, part.begin, part.count);
}

// Whose which of its elements are, counted from its begin, where `all` shares out the flat space.
Shares SharesIn(const GradientPart& part, Shares all);

// Parts of at least `least_count` elements and whole parameters, from the end of the space down:
// layers finish from last to first. Adds a move kSum to `micro_batch` behind the last op that
// writes each of them; that of the last part stands behind all ops. A function of the program
// alone, so that all ranks cut alike.
std::vector<GradientPart> DivideGradient(const ParameterSpace& space, kernels::ConstTensor gradient,
                                         int64_t least_count, PieceProgram* micro_batch);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_STEP_GRADIENT_PARTS_H_
