#include "engine/plan/rematerialize.h"

#include <type_traits>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"

namespace qlora::engine {
namespace {

using kernels::ConstTensor;
using kernels::Op;
using kernels::Tensor;

template <class View>
constexpr bool kIsRead = std::is_same_v<std::remove_cvref_t<View>, ConstTensor>;

class Rewriter {
 public:
  Rewriter(Program* program, int64_t piece_index, const absl::flat_hash_set<BufferId>& dropped)
      : program_(program), piece_index_(piece_index), dropped_(dropped) {}

  RecomputeCost Run() {
    std::vector<Op> old = std::move(piece().ops);
    const int64_t backward_begin = piece().backward_begin;
    for (int64_t i = 0; i < backward_begin; ++i) {
      const absl::flat_hash_set<BufferId> read = ReadBy(old[i]);
      kernels::VisitTensors(old[i], [&](const char*, const auto& view) {
        if (view.data == nullptr || kIsRead<decltype(view)>) return;
        const BufferId id = Program::IdOf(view.data);
        if (!read.contains(id)) producer_[id] = i;
      });
    }
    forward_.assign(old.begin(), old.begin() + backward_begin);
    result_ = forward_;
    auto move = piece().moves.begin();
    const auto keep_place = [&](int64_t before) {
      for (; move != piece().moves.end() && move->before == before; ++move) {
        move->before = int64_t(result_.size());
      }
    };
    for (int64_t i = backward_begin; i < int64_t(old.size()); ++i) {
      keep_place(i);
      RedirectReads(&old[i]);
      result_.push_back(std::move(old[i]));
    }
    keep_place(int64_t(old.size()));
    piece().ops = std::move(result_);
    return cost_;
  }

 private:
  // An op that writes to a buffer that it reads uses its gaps as scratch: it is not the producer,
  // and where it is run again the scratch is that of the buffer that it reads then.
  static absl::flat_hash_set<BufferId> ReadBy(const Op& op) {
    absl::flat_hash_set<BufferId> ids;
    kernels::VisitTensors(op, [&](const char*, const auto& view) {
      if (kIsRead<decltype(view)> && view.data != nullptr) ids.insert(Program::IdOf(view.data));
    });
    return ids;
  }

  PieceProgram& piece() { return program_->pieces()[piece_index_]; }

  void RedirectReads(Op* op) {
    // Recomputing appends ops, so all of it happens before the op's own views are changed.
    kernels::VisitTensors(*op, [&](const char*, const auto& view) {
      if (kIsRead<decltype(view)> && view.data != nullptr) Restore(Program::IdOf(view.data));
    });
    kernels::VisitTensors(*op, [&](const char*, auto& view) {
      if constexpr (kIsRead<decltype(view)>) {
        if (view.data == nullptr) return;
        view.data =
            Program::AddressOf(ReadFrom(Program::IdOf(view.data)), Program::OffsetOf(view.data));
      }
    });
  }

  void Restore(BufferId id) {
    if (!dropped_.contains(id) || second_.contains(id)) return;
    const auto producer = producer_.find(id);
    if (producer == producer_.end()) return;
    Op copy = forward_[producer->second];
    if (auto* norm = std::get_if<kernels::RmsNormForward>(&copy)) {
      NormaliseTheSum(norm, id);
      // Adapters' products are never dropped.
      norm->products.clear();
      norm->workspace = {};
    }
    const absl::flat_hash_set<BufferId> read = ReadBy(copy);
    RedirectReads(&copy);
    kernels::VisitTensors(copy, [&](const char*, auto& view) {
      if constexpr (!kIsRead<decltype(view)>) {
        if (view.data == nullptr) return;
        const BufferId first = Program::IdOf(view.data);
        const BufferId to = read.contains(first) ? ReadFrom(first) : SecondOf(first);
        view.data = Program::AddressOf(to, Program::OffsetOf(view.data));
      }
    });
    cost_.flops += kernels::FlopsOf(copy);
    cost_.indices.push_back(int64_t(result_.size()));
    ++cost_.ops;
    result_.push_back(std::move(copy));
  }

  // A norm that also adds the residual needs two inputs of the layer before. Its sum, if that is
  // not what is wanted, stands for both: y is computed from the rounded sum.
  static void NormaliseTheSum(kernels::RmsNormForward* norm, BufferId wanted) {
    if (!norm->residual || Program::IdOf(norm->sum.data) == wanted) return;
    norm->x = norm->sum;
    norm->residual = {};
    norm->sum = {};
  }

  // Where a value is read from now.
  BufferId ReadFrom(BufferId id) const {
    const auto it = second_.find(id);
    return it != second_.end() ? it->second : id;
  }

  // The buffer that takes a recomputed value. Readers are sent there only if the first one is
  // dropped.
  BufferId SecondOf(BufferId id) {
    if (const auto it = second_.find(id); it != second_.end()) return it->second;
    const BufferInfo& info = program_->buffers()[id];
    const Tensor again =
        program_->AddBuffer(absl::StrCat(info.name, " (again)"), BufferClass::kTransient,
                            kernels::DType::kU8, 1, info.bytes, info.layer);
    const BufferId second = Program::IdOf(again.data);
    if (dropped_.contains(id)) second_[id] = second;
    return second;
  }

  Program* program_;
  const int64_t piece_index_;
  const absl::flat_hash_set<BufferId>& dropped_;
  absl::flat_hash_map<BufferId, int64_t> producer_;
  absl::flat_hash_map<BufferId, BufferId> second_;
  std::vector<Op> forward_, result_;
  RecomputeCost cost_;
};

}  // namespace

RecomputeCost Rematerialize(Program* program, int64_t piece_index,
                            const absl::flat_hash_set<BufferId>& dropped) {
  return Rewriter(program, piece_index, dropped).Run();
}

}  // namespace qlora::engine
