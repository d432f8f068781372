// A plan with memory behind it: the only place where a run's buffers are allocated, and exactly
// those of the plan.

#ifndef QLORA_ENGINE_STEP_EXECUTION_H_
#define QLORA_ENGINE_STEP_EXECUTION_H_

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/comm/comm.h"
#include "engine/plan/plan.h"
#include "kernels/device.h"

namespace qlora::engine {

class Execution {
 public:
  // `plan`, `device` and `comm`, which only a plan with shard_base needs, must outlive it.
  static absl::StatusOr<std::unique_ptr<Execution>> Create(const Plan& plan,
                                                           kernels::Device* device,
                                                           Comm* comm = nullptr);

  const Plan& plan() const { return plan_; }
  kernels::Device& device() { return *device_; }

  // Starts a piece; results are there after device().Synchronize(). `at_move` is called at each of
  // its moves kSum and kLend: what it tells the device runs between the ops there, and must leave
  // transient buffers alone that are not lent.
  using AtMove = absl::FunctionRef<absl::Status(const Move& move)>;
  absl::Status Run(int64_t piece, AtMove at_move);
  absl::Status Run(int64_t piece) {
    return Run(piece, [](const Move&) { return absl::OkStatus(); });
  }

  // For who looks for a fault: Run, one op at a time, each waited for and then shown as the program
  // has it. What it wrote can be read as long as `look` runs. Gradients are not summed over ranks.
  using Look = absl::FunctionRef<absl::Status(const kernels::Op& op)>;
  absl::Status RunWatched(int64_t piece, Look look);

  // Puts `bytes` at a persistent view behind the pieces started so far, without waiting for them;
  // `from` is free again when it returns. For the inputs of a step.
  absl::Status Stage(kernels::ConstTensor view, const void* from, int64_t bytes);

  // Copies between host memory and a persistent view of the program; both wait for what was started
  // before. The view must have no gaps between rows, and `bytes` at most its extent. Within
  // RunWatched, Read takes transient views too.
  absl::Status Write(kernels::ConstTensor view, const void* from, int64_t bytes);
  absl::Status Read(kernels::ConstTensor view, void* to, int64_t bytes);
  template <class T>
  absl::StatusOr<T> ReadScalar(kernels::ConstTensor view) {
    T value;
    if (absl::Status status = Read(view, &value, sizeof(T)); !status.ok()) return status;
    return value;
  }

  // The real address of a program's view.
  kernels::Tensor Bind(kernels::Tensor view) const { return Program::Bind(view, base_); }
  // The transient arena, at least PlanLimits::loading_bytes long: free before the first step.
  void* LoadingScratch() const;
  // The windows of class kPagedStates; null where the plan pages nothing.
  kernels::PagedMemory* paged_states() { return paged_.get(); }
  // Ops of the program's buffers that are no piece of it: loading.
  absl::Status RunOnce(std::vector<kernels::Op> bound_ops) {
    return device_->RunOnce(std::move(bound_ops));
  }

 private:
  Execution(const Plan& plan, kernels::Device* device, Comm* comm)
      : plan_(plan), device_(device), comm_(comm) {}
  // A piece of the program: its ops up to each place where windows move, prepared, and the moves
  // before them.
  struct Part {
    std::vector<Move> moves;
    std::unique_ptr<kernels::Piece> ops;  // null: none
  };
  absl::Status Allocate();
  absl::StatusOr<std::unique_ptr<kernels::PagedMemory>> AllocatePaged(
      const kernels::PagedShape& shape, BufferClass c);
  absl::StatusOr<std::vector<Part>> Prepare(const PieceProgram& piece);
  absl::Status Do(const Move& move, AtMove at_move);
  absl::Status Gather(const Move& move);
  absl::Status Arrive();
  // The window that a view lies in, where it lies in paged memory.
  std::optional<int64_t> WindowOf(kernels::ConstTensor view) const;
  uint8_t* AddressOf(kernels::ConstTensor view) const {
    return static_cast<uint8_t*>(base_[Program::IdOf(view.data)]) + Program::OffsetOf(view.data);
  }

  const Plan& plan_;
  kernels::Device* const device_;
  Comm* const comm_;
  std::deque<int64_t> arriving_;         // numbers of the gathers that are on their way
  std::vector<kernels::Buffer> arenas_;  // by BufferClass
  std::unique_ptr<kernels::PagedMemory> paged_;
  BufferId first_window_ = -1;
  std::vector<void*> base_;  // by BufferId
  std::unique_ptr<kernels::PagedMemory> offloaded_;
  std::vector<std::vector<Part>> pieces_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_STEP_EXECUTION_H_
