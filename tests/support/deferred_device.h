// DeferredDevice: a device that forgives nothing, over the ops of the CPU backend.
//
//   - Run only queues. Ops are executed on another thread when the host synchronizes, in an order
//   drawn from a seed among
//     all that their declared operands allow: two ops may change places unless one writes bytes
//     that the other reads or writes. An op that reads what it does not declare, or writes what it
//     declares as read, gives other bytes than the CPU, or a fault.
//   - The host cannot reach device memory. Addresses that it is given belong to a mapping without
//   any access rights; ops
//     run on a second mapping of the same pages. A view that an op does not declare is not moved
//     there: using it faults.
//   - CopyIn and CopyOut fail where queued ops still need the bytes, or have still to write them.
//   - Paged windows lie elsewhere while they are not on the device, and what they leave behind in
//   their slot is overwritten. A move is queued like an op. Moves out of turn, and ops on a window
//   that nobody awaited, end the test: no use before arrival, no eviction before use is done, never
//   more windows on the device than there are slots; and none in bytes that were lent and are in
//   use by something else.
//
// So what runs on the CPU and here with equal bytes declares its operands rightly, waits where it
// must, and never looks at device memory from the host: what a device that runs at once would hide
// until the first run on a GPU.

#ifndef QLORA_TESTS_SUPPORT_DEFERRED_DEVICE_H_
#define QLORA_TESTS_SUPPORT_DEFERRED_DEVICE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace qlora::kernels::optest {

struct DeferredOptions {
  uint64_t seed = 1;
  // For tests of the device itself: pretends that an op declares an operand wrongly.
  enum class Declared { kRightly, kAsRead, kNotAtAll };
  std::function<Declared(const char* op, const char* operand)> declared = nullptr;
};

class DeferredDevice : public Device {
 public:
  // `inner` runs the ops and must be one whose memory is the host's.
  DeferredDevice(std::unique_ptr<Device> inner, DeferredOptions options);
  ~DeferredDevice() override;

  const DeviceInfo& info() const override { return info_; }
  int64_t WorkspaceBytes(const Op& op) const override { return inner_->WorkspaceBytes(op); }
  int64_t PrivateBytes() const override { return inner_->PrivateBytes(); }
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  absl::StatusOr<std::unique_ptr<PagedMemory>> AllocatePaged(const PagedShape& shape) override;
  // InvalidArgument where an operand lies in no allocation.
  absl::StatusOr<std::unique_ptr<Piece>> Prepare(std::vector<Op> ops) override;
  // Runs the queue first where a queued op uses the bytes.
  absl::Status Stage(void* device, const void* host, int64_t bytes) override;
  // FailedPrecondition where a queued op makes the copy a race.
  absl::Status CopyIn(void* device, const void* host, int64_t bytes) override;
  absl::Status CopyOut(void* host, const void* device, int64_t bytes) override;
  absl::Status Synchronize() override;

  // How often an op ran right behind one that was queued after it: 0 would mean that nothing is
  // tested.
  int64_t overtakings() const { return overtakings_; }
  int64_t ops_run() const { return ops_run_; }
  // Bytes of paged windows brought to the device, and evicted from it.
  int64_t moved_in() const { return moved_in_; }
  int64_t moved_out() const { return moved_out_; }
  // The order of the last Synchronize: entry i is the place in the queue of the op that ran as
  // number i.
  const std::vector<int64_t>& last_order() const { return last_order_; }

 private:
  friend class DeferredPiece;
  friend class DeferredPagedMemory;

  // Bytes [begin, end) of the host's addresses.
  struct Span {
    uintptr_t begin, end;
    bool written;
    bool Conflicts(const Span& other) const {
      return (written || other.written) && begin < other.end && other.begin < end;
    }
  };
  struct Queued {
    const char* name;
    std::function<absl::Status()> run;
    std::vector<Span> spans;
  };

  std::vector<Span> SpansOf(const Op& op) const;
  absl::Status Enqueue(const std::vector<Op>& ops);
  absl::Status Enqueue(Queued queued);
  absl::Status RunQueue();
  absl::Status Execute(Op op);
  // Fails where a queued op conflicts with the host's access.
  absl::Status CheckNoRace(const void* device, int64_t bytes, bool written, const char* what) const;

  const std::unique_ptr<Device> inner_;
  const DeferredOptions options_;
  DeviceInfo info_;
  std::vector<Queued> queue_;
  std::vector<class DeferredPagedMemory*> paged_;
  std::vector<int64_t> last_order_;
  int64_t rounds_ = 0, overtakings_ = 0, ops_run_ = 0;
  int64_t moved_in_ = 0, moved_out_ = 0;
  absl::Status failure_;  // of ops that ran because the queue was full
};

}  // namespace qlora::kernels::optest

#endif  // QLORA_TESTS_SUPPORT_DEFERRED_DEVICE_H_
