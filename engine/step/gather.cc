#include "engine/step/gather.h"

#include <algorithm>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace qlora::engine {
namespace {

// Ops one after another, but for those that read no group, over one group's window.
struct Run {
  int64_t group;
  int64_t first;
  BufferId buffer;  // that they read instead
};

class Gatherer {
 public:
  Gatherer(Program* program, absl::Span<const GatheredGroup> groups)
      : program_(*program), groups_(groups) {
    for (size_t g = 0; g < groups.size(); ++g) group_of_[groups[g].window] = int64_t(g);
  }

  void Rewrite(int64_t piece_index) {
    const std::vector<Run> runs = Redirect(piece_index);
    PieceProgram& piece = program_.pieces()[piece_index];
    using enum Move::Kind;
    for (size_t i = 0; i < runs.size(); ++i) {
      if (i == 0) piece.moves.push_back(GatherOf(runs[0], runs[0].first));
      piece.moves.push_back({runs[i].first, kArrive});
      if (i + 1 < runs.size()) piece.moves.push_back(GatherOf(runs[i + 1], runs[i].first));
    }
    std::stable_sort(piece.moves.begin(), piece.moves.end(),
                     [](const Move& a, const Move& b) { return a.before < b.before; });
  }

 private:
  static Move GatherOf(const Run& run, int64_t before) {
    return {before, Move::Kind::kGather, run.group, run.buffer};
  }

  std::vector<Run> Redirect(int64_t piece_index) {
    std::vector<Run> runs;
    const int64_t ops = int64_t(program_.pieces()[piece_index].ops.size());
    for (int64_t i = 0; i < ops; ++i) {
      kernels::VisitTensors(program_.pieces()[piece_index].ops[i], [&](const char*, auto& view) {
        if (view.data == nullptr) return;
        const auto it = group_of_.find(Program::IdOf(view.data));
        if (it == group_of_.end()) return;
        if (runs.empty() || runs.back().group != it->second) {
          runs.push_back({it->second, i, NewBuffer(groups_[it->second])});
        }
        view.data = Program::AddressOf(runs.back().buffer, Program::OffsetOf(view.data));
      });
    }
    return runs;
  }

  BufferId NewBuffer(const GatheredGroup& group) {
    const BufferInfo window = program_.buffers()[group.window];
    const kernels::Tensor place =
        program_.AddBuffer(group.name + ", gathered", BufferClass::kTransient, kernels::DType::kU8,
                           1, window.bytes, window.layer);
    return Program::IdOf(place.data);
  }

  Program& program_;
  const absl::Span<const GatheredGroup> groups_;
  absl::flat_hash_map<BufferId, int64_t> group_of_;
};

}  // namespace

void GatherAhead(Program* program, absl::Span<const GatheredGroup> groups) {
  Gatherer gatherer(program, groups);
  for (int64_t i = 0; i < int64_t(program->pieces().size()); ++i) gatherer.Rewrite(i);
}

}  // namespace qlora::engine
