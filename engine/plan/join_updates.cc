#include "engine/plan/join_updates.h"

#include <utility>
#include <variant>
#include <vector>

namespace qlora::engine {
namespace {

using kernels::AdamW;
using kernels::ConstTensor;
using kernels::Tensor;

AdamW& UpdateOf(RecordedRun* run, const UpdatePiece& update) {
  return std::get<AdamW>(run->program.pieces()[update.piece].ops.front());
}

class Joiner {
 public:
  Joiner(const kernels::PagedShape& shape, const Program& program)
      : shape_(shape), program_(program) {}

  // `next` is the window behind the range that `first` updates.
  void Append(AdamW* first, const AdamW& next) const {
    Lengthen(next.gradient.cols, &first->gradient);
    if (next.compute) Lengthen(next.compute.cols, &first->compute);
    for (const auto field :
         {&AdamW::parameter, &AdamW::m, &AdamW::v, &AdamW::m_absmax, &AdamW::v_absmax}) {
      Tensor& state = first->*field;
      if (!state) continue;
      if (IsPaged(state)) {
        state.pitch = shape_.window_bytes / kernels::SizeOf(state.dtype);
        ++state.rows;
      } else {
        Lengthen((next.*field).cols, &state);
      }
    }
  }

 private:
  template <class View>
  static void Lengthen(int64_t columns, View* flat) {
    flat->cols += columns;
    flat->pitch = flat->cols;
  }
  bool IsPaged(const Tensor& state) const {
    return program_.buffers()[Program::IdOf(state.data)].buffer_class == BufferClass::kPagedStates;
  }

  const kernels::PagedShape& shape_;
  const Program& program_;
};

}  // namespace

void JoinUpdates(const kernels::PagedShape& shape, RecordedRun* run) {
  const std::vector<StateWindow>& windows = run->storage.windows;
  const Joiner joiner(shape, run->program);
  std::vector<UpdatePiece> joined;
  for (const UpdatePiece& update : run->train->update) {
    const int64_t w = update.windows.first;
    if (!joined.empty() && shape.AreNeighbours(w - 1) &&
        windows[w - 1].course == windows[w].course) {
      joiner.Append(&UpdateOf(run, joined.back()), UpdateOf(run, update));
      PieceProgram& empty = run->program.pieces()[update.piece];
      empty.ops.clear();
      empty.backward_begin = 0;
      ++joined.back().windows.count;
    } else {
      joined.push_back(update);
    }
  }
  run->train->update = std::move(joined);
}

}  // namespace qlora::engine
