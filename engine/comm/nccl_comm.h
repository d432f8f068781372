// Collectives among GPUs, over NCCL, beside what they compute.
//
// NCCL only moves bytes: the order in which ncclAllReduce adds depends on how many ranks there are
// and how they are wired, so terms are exchanged and added here, by the tree that comm.h promises.
//
// Nothing blocks in NCCL: its communicator returns at once, and is asked until it is done or the
// job aborted; then it is aborted too.

#ifndef QLORA_ENGINE_COMM_NCCL_COMM_H_
#define QLORA_ENGINE_COMM_NCCL_COMM_H_

#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "engine/comm/comm.h"
#include "engine/comm/control_channel.h"
#include "engine/comm/nccl.h"
#include "kernels/device.h"
#include "kernels/side_queue.h"

namespace qlora::engine {

class NcclComm : public Comm {
 public:
  // Comes back when all ranks have called it. NoDevice where there is no usable NCCL. `control`,
  // which hands NCCL's id round, and `device`, a GPU, must outlive it. Used on one thread, the one
  // that opened the device.
  static absl::StatusOr<std::unique_ptr<NcclComm>> Create(ControlChannel* control,
                                                          kernels::Device* device);
  // What is still on its way is dropped: either all ranks have met since their last collective, or
  // the job is over.
  ~NcclComm() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status StartSum(kernels::DType dtype, void* data, void* scratch, int64_t count) override;
  absl::Status StartSumShares(kernels::DType dtype, void* data, void* scratch,
                              const Shares& shares) override;
  absl::Status StartAllGather(const void* mine, void* all, const Shares& shares) override;
  absl::Status StartBroadcast(void* data, int64_t bytes, absl::Span<const int> ranks) override;
  absl::Status Await(int64_t last) override;

 private:
  NcclComm(ControlChannel* control, kernels::Device* device,
           std::unique_ptr<kernels::SideQueue> queue, nccl::Library library)
      : rank_(control->rank()),
        size_(control->size()),
        control_(control),
        device_(device),
        queue_(std::move(queue)),
        nccl_(std::move(library)) {}

  absl::Status Open();
  // Aborts where `body` fails; does nothing after an error.
  absl::Status Do(absl::FunctionRef<absl::Status()> body);
  // Puts what `body` starts on the queue, behind what the device was told, as one collective.
  absl::Status Start(absl::FunctionRef<absl::Status()> body);
  // The same, of all ranks, told to whoever watches.
  absl::Status Collective(absl::FunctionRef<absl::Status()> body);
  // Gives NCCL the calls of `calls` as one group, and waits until they are on the queue.
  absl::Status Group(absl::FunctionRef<void()> calls);
  // Keeps the first error of the calls of a group.
  void Note(nccl::Result result);
  absl::Status Poll(absl::FunctionRef<absl::StatusOr<bool>()> is_done);
  // Whether NCCL has done what it was told; its errors, also those of other ranks.
  absl::StatusOr<bool> IsReady();
  absl::Status ErrorOf(nccl::Result result);
  // Ends what NCCL still does, and waits until the queue has run dry: till then memory is in use.
  void Abort();
  absl::Status SumShares(kernels::DType dtype, uint8_t* data, uint8_t* scratch,
                         const Shares& shares);
  absl::Status AllGather(const uint8_t* mine, uint8_t* all, const Shares& shares);

  const int rank_, size_;
  ControlChannel* const control_;
  kernels::Device* const device_;
  const std::unique_ptr<kernels::SideQueue> queue_;
  const nccl::Library nccl_;
  nccl::Communicator comm_ = nullptr;  // none after an error
  nccl::Result noted_ = nccl::Result::kSuccess;
  int64_t marks_ = 0;    // put on the queue
  absl::Status status_;  // the first error; nothing is done after it
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_NCCL_COMM_H_
