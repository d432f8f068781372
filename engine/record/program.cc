#include "engine/record/program.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "absl/container/flat_hash_map.h"

namespace qlora::engine {
namespace {

using kernels::Op;
using kernels::Tensor;

}  // namespace

const char* NameOf(BufferClass c) {
  constexpr const char* kNames[kBufferClasses] = {"4-bit weights",
                                                  "16-bit and fp32 weights",
                                                  "trained parameters (fp32)",
                                                  "trained parameters (compute copy)",
                                                  "optimizer states",
                                                  "paged optimizer states",
                                                  "gradients",
                                                  "tables",
                                                  "step inputs",
                                                  "step outputs",
                                                  "key/value cache",
                                                  "layer inputs on their way to host memory",
                                                  "weights gathered from all ranks",
                                                  "activations and workspaces"};
  return kNames[int(c)];
}

Tensor Program::AddBuffer(std::string name, BufferClass c, kernels::DType dtype, int64_t rows,
                          int64_t cols, int layer) {
  const int64_t bytes = kernels::BufferBytes(rows * cols * kernels::SizeOf(dtype));
  buffers_.push_back({std::move(name), c, bytes, layer});
  return {AddressOf(BufferId(buffers_.size()) - 1), dtype, rows, cols, cols};
}

int64_t Program::BytesOf(BufferClass c) const {
  int64_t sum = 0;
  for (const BufferInfo& buffer : buffers_) {
    if (buffer.buffer_class == c) sum += buffer.bytes;
  }
  return sum;
}

std::vector<Op> Program::Ops() const {
  std::vector<Op> ops;
  for (const PieceProgram& piece : pieces_) {
    ops.insert(ops.end(), piece.ops.begin(), piece.ops.end());
  }
  return ops;
}

std::vector<Lifetime> Program::Lifetimes(const PieceProgram& piece) const {
  std::vector<Lifetime> lifetimes;
  absl::flat_hash_map<BufferId, int64_t> index;
  for (int64_t i = 0; i < int64_t(piece.ops.size()); ++i) {
    kernels::VisitTensors(piece.ops[i], [&](const char*, const auto& view) {
      if (view.data == nullptr) return;
      const BufferId id = IdOf(view.data);
      if (buffers_[id].buffer_class != BufferClass::kTransient) return;
      const auto [it, is_new] = index.try_emplace(id, int64_t(lifetimes.size()));
      if (is_new) lifetimes.push_back({id, i, i});
      lifetimes[it->second].last = i;
    });
  }
  for (const Move& move : piece.moves) {
    if (move.kind != Move::Kind::kGather) continue;
    Lifetime& lifetime = lifetimes[index.at(move.buffer)];
    lifetime.first = std::min(lifetime.first, move.before);
  }
  return lifetimes;
}

Tensor Program::Bind(Tensor view, absl::Span<void* const> base) {
  if (view.data != nullptr) {
    view.data = static_cast<uint8_t*>(base[IdOf(view.data)]) + OffsetOf(view.data);
  }
  return view;
}

std::vector<Op> Program::Bind(absl::Span<const Op> ops, absl::Span<void* const> base) {
  std::vector<Op> bound(ops.begin(), ops.end());
  for (Op& op : bound) {
    kernels::VisitTensors(op, [&](const char*, auto& view) {
      if (view.data == nullptr) return;
      uint8_t* begin = static_cast<uint8_t*>(base[IdOf(view.data)]);
      view.data = begin + OffsetOf(view.data);
    });
  }
  return bound;
}

void Recorder::Finish(bool has_backward) {
  if (!has_backward) piece_.backward_begin = int64_t(piece_.ops.size());
  program_->pieces().push_back(std::move(piece_));
}

}  // namespace qlora::engine
