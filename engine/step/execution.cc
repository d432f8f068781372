#include "engine/step/execution.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace qlora::engine {

absl::StatusOr<std::unique_ptr<Execution>> Execution::Create(const Plan& plan,
                                                             kernels::Device* device, Comm* comm) {
  std::unique_ptr<Execution> execution(new Execution(plan, device, comm));
  if (absl::Status status = execution->Allocate(); !status.ok()) return status;
  for (const PieceProgram& piece : plan.run.program.pieces()) {
    absl::StatusOr<std::vector<Part>> prepared = execution->Prepare(piece);
    if (!prepared.ok()) return prepared.status();
    execution->pieces_.push_back(*std::move(prepared));
  }
  return execution;
}

absl::Status Execution::Allocate() {
  const std::vector<BufferInfo>& buffers = plan_.run.program.buffers();
  base_.assign(buffers.size(), nullptr);
  arenas_.resize(kBufferClasses);
  std::vector<int64_t> next(kBufferClasses, 0);
  for (int c = 0; c < kBufferClasses; ++c) {
    if (BufferClass(c) == BufferClass::kPagedStates || BufferClass(c) == BufferClass::kOffloaded ||
        BufferClass(c) == BufferClass::kGathered) {
      continue;
    }
    const bool transient = BufferClass(c) == BufferClass::kTransient;
    const int64_t bytes =
        transient ? plan_.placement.bytes : plan_.run.program.BytesOf(BufferClass(c));
    absl::StatusOr<kernels::Buffer> arena = device_->Allocate(bytes);
    if (!arena.ok()) {
      return absl::Status(arena.status().code(),
                          absl::StrCat("allocating ", FormatBytes(bytes), " for ",
                                       NameOf(BufferClass(c)), ": ", arena.status().message()));
    }
    arenas_[c] = *std::move(arena);
  }
  for (size_t id = 0; id < buffers.size(); ++id) {
    const int c = int(buffers[id].buffer_class);
    int64_t offset = plan_.placement.offset[id];
    if (buffers[id].buffer_class != BufferClass::kTransient) {
      offset = next[c];
      next[c] += buffers[id].bytes;
    }
    if (offset >= 0 && arenas_[c].data() != nullptr) {
      base_[id] = static_cast<uint8_t*>(arenas_[c].data()) + offset;
    }
  }
  if (plan_.paging.windows > 0) {
    kernels::PagedShape shape = plan_.paging;
    shape.lent = arenas_[int(BufferClass::kTransient)].data();
    auto paged = AllocatePaged(shape, BufferClass::kPagedStates);
    if (!paged.ok()) return paged.status();
    paged_ = *std::move(paged);
    int64_t window = 0;
    for (size_t id = 0; id < buffers.size(); ++id) {
      if (buffers[id].buffer_class != BufferClass::kPagedStates) continue;
      if (window == 0) first_window_ = BufferId(id);
      base_[id] = paged_->Address(window++);
    }
  }
  if (plan_.offloaded.shape.windows == 0) return absl::OkStatus();
  auto offloaded = AllocatePaged(plan_.offloaded.shape, BufferClass::kOffloaded);
  if (!offloaded.ok()) return offloaded.status();
  offloaded_ = *std::move(offloaded);
  for (size_t w = 0; w < plan_.offloaded.windows.size(); ++w) {
    base_[plan_.offloaded.windows[w]] = offloaded_->Address(int64_t(w));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<kernels::PagedMemory>> Execution::AllocatePaged(
    const kernels::PagedShape& shape, BufferClass c) {
  absl::StatusOr<std::unique_ptr<kernels::PagedMemory>> memory = device_->AllocatePaged(shape);
  if (memory.ok()) return memory;
  return absl::Status(memory.status().code(),
                      absl::StrCat("allocating ", FormatBytes(shape.TotalBytes()), " for ",
                                   NameOf(c), ": ", memory.status().message()));
}

absl::StatusOr<std::vector<Execution::Part>> Execution::Prepare(const PieceProgram& piece) {
  std::vector<Part> parts;
  const std::vector<kernels::Op> ops = Program::Bind(piece.ops, base_);
  auto move = piece.moves.begin();
  for (int64_t begin = 0; begin < int64_t(ops.size()) || move != piece.moves.end();) {
    Part& part = parts.emplace_back();
    for (; move != piece.moves.end() && move->before == begin; ++move) part.moves.push_back(*move);
    const int64_t end = move != piece.moves.end() ? move->before : int64_t(ops.size());
    if (begin == end) continue;
    auto prepared = device_->Prepare({ops.begin() + begin, ops.begin() + end});
    if (!prepared.ok()) return prepared.status();
    part.ops = *std::move(prepared);
    begin = end;
  }
  return parts;
}

absl::Status Execution::Run(int64_t piece, AtMove at_move) {
  for (const Part& part : pieces_[piece]) {
    for (const Move& move : part.moves) {
      if (absl::Status s = Do(move, at_move); !s.ok()) return s;
    }
    if (part.ops == nullptr) continue;
    if (absl::Status s = part.ops->Run(); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status Execution::RunWatched(int64_t piece, Look look) {
  const PieceProgram& program = plan_.run.program.pieces()[piece];
  auto move = program.moves.begin();
  for (int64_t i = 0; i <= int64_t(program.ops.size()); ++i) {
    for (; move != program.moves.end() && move->before == i; ++move) {
      if (absl::Status s = Do(*move, [](const Move&) { return absl::OkStatus(); }); !s.ok())
        return s;
    }
    if (i == int64_t(program.ops.size())) break;
    const kernels::Op& op = program.ops[i];
    if (absl::Status s = RunOnce(Program::Bind(absl::MakeConstSpan(&op, 1), base_)); !s.ok()) {
      return s;
    }
    if (absl::Status s = look(op); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status Execution::Do(const Move& move, AtMove at_move) {
  switch (move.kind) {
    case Move::Kind::kClaim:
      return offloaded_->Claim(move.window);
    case Move::Kind::kEvict:
      return offloaded_->Evict(move.window);
    case Move::Kind::kBring:
      return offloaded_->Bring(move.window);
    case Move::Kind::kAwait:
      return offloaded_->Await(move.window);
    case Move::Kind::kDrop:
      return offloaded_->Drop(move.window);
    case Move::Kind::kSum:
    case Move::Kind::kLend:
      return at_move(move);
    case Move::Kind::kReclaim:
      return paged_->Reclaim(move.window);
    case Move::Kind::kGather:
      return Gather(move);
    case Move::Kind::kArrive:
      break;
  }
  return Arrive();
}

absl::Status Execution::Gather(const Move& move) {
  const GatheredGroup& group = plan_.run.storage.gathered[move.window];
  if (absl::Status s =
          comm_->StartAllGather(Bind(group.share).data, base_[move.buffer], group.shares);
      !s.ok()) {
    return s;
  }
  arriving_.push_back(comm_->started());
  return absl::OkStatus();
}

absl::Status Execution::Arrive() {
  const int64_t first = arriving_.front();
  arriving_.pop_front();
  return comm_->Await(first);
}

std::optional<int64_t> Execution::WindowOf(kernels::ConstTensor view) const {
  const BufferId id = Program::IdOf(view.data);
  if (plan_.run.program.buffers()[id].buffer_class != BufferClass::kPagedStates) {
    return std::nullopt;
  }
  return id - first_window_;
}

absl::Status Execution::Stage(kernels::ConstTensor view, const void* from, int64_t bytes) {
  return device_->Stage(AddressOf(view), from, bytes);
}

absl::Status Execution::Write(kernels::ConstTensor view, const void* from, int64_t bytes) {
  if (const std::optional<int64_t> window = WindowOf(view)) {
    return paged_->Write(*window, Program::OffsetOf(view.data), from, bytes);
  }
  if (absl::Status status = device_->Synchronize(); !status.ok()) return status;
  return device_->CopyIn(AddressOf(view), from, bytes);
}

void* Execution::LoadingScratch() const { return arenas_[int(BufferClass::kTransient)].data(); }

absl::Status Execution::Read(kernels::ConstTensor view, void* to, int64_t bytes) {
  if (const std::optional<int64_t> window = WindowOf(view)) {
    return paged_->Read(*window, Program::OffsetOf(view.data), to, bytes);
  }
  if (absl::Status status = device_->Synchronize(); !status.ok()) return status;
  return device_->CopyOut(to, AddressOf(view), bytes);
}

}  // namespace qlora::engine
