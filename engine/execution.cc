#include "engine/execution.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace qlora::engine {

absl::StatusOr<std::unique_ptr<Execution>> Execution::Create(const Plan& plan,
                                                             kernels::Device* device) {
  std::unique_ptr<Execution> execution(new Execution(plan, device));
  if (absl::Status status = execution->Allocate(); !status.ok()) return status;
  for (const PieceProgram& piece : plan.run.program.pieces()) {
    absl::StatusOr<std::unique_ptr<kernels::Piece>> prepared =
        device->Prepare(Program::Bind(piece.ops, execution->base_));
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
    if (BufferClass(c) == BufferClass::kPagedStates) continue;
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
  return AllocatePaged();
}

absl::Status Execution::AllocatePaged() {
  if (plan_.paging.windows == 0) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<kernels::PagedMemory>> paged =
      device_->AllocatePaged(plan_.paging);
  if (!paged.ok()) {
    return absl::Status(
        paged.status().code(),
        absl::StrCat("allocating ", FormatBytes(plan_.paging.TotalBytes()), " for ",
                     NameOf(BufferClass::kPagedStates), ": ", paged.status().message()));
  }
  paged_ = *std::move(paged);
  const std::vector<BufferInfo>& buffers = plan_.run.program.buffers();
  int64_t window = 0;
  for (size_t id = 0; id < buffers.size(); ++id) {
    if (buffers[id].buffer_class != BufferClass::kPagedStates) continue;
    if (window == 0) first_window_ = BufferId(id);
    base_[id] = paged_->Address(window++);
  }
  return absl::OkStatus();
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
