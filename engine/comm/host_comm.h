// Collectives among ranks whose devices' memory is the host's: a thread of its own moves and sums
// while the device computes.

#ifndef QLORA_ENGINE_COMM_HOST_COMM_H_
#define QLORA_ENGINE_COMM_HOST_COMM_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/status/statusor.h"
#include "engine/comm/comm.h"
#include "engine/comm/control_channel.h"
#include "engine/comm/host_link.h"
#include "kernels/device.h"

namespace qlora::engine {

class HostComm : public Comm {
 public:
  // Opens the link and closes it, on the thread that will use it.
  using OpenLink = std::function<absl::StatusOr<std::unique_ptr<HostLink>>()>;

  // `device`, whose memory is the host's, and `control`, which learns of waits and progress, must
  // outlive it.
  static absl::StatusOr<std::unique_ptr<HostComm>> Create(ControlChannel* control,
                                                          kernels::Device* device,
                                                          const OpenLink& open);
  ~HostComm() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status StartSum(kernels::DType dtype, void* data, void* scratch, int64_t count) override;
  absl::Status StartSumShares(kernels::DType dtype, void* data, void* scratch,
                              const Shares& shares) override;
  absl::Status StartAllGather(const void* mine, void* all, const Shares& shares) override;
  absl::Status StartBroadcast(void* data, int64_t bytes, absl::Span<const int> ranks) override;
  absl::Status Await(int64_t last) override;

 private:
  HostComm(ControlChannel* control, kernels::Device* device)
      : rank_(control->rank()), size_(control->size()), control_(control), device_(device) {}

  absl::Status Start(std::function<absl::Status()> task);
  absl::Status AwaitWorker(int64_t last);
  void Work(const OpenLink& open);
  absl::Status Exchange(int to, const void* send, int64_t send_bytes, int from, void* receive,
                        int64_t receive_bytes);
  template <class T>
  absl::Status SumShares(T* data, T* scratch, const Shares& shares);
  absl::Status AllGather(const uint8_t* mine, uint8_t* all, const Shares& shares);
  absl::Status Broadcast(uint8_t* data, int64_t bytes, absl::Span<const int> ranks);

  const int rank_, size_;
  ControlChannel* const control_;
  kernels::Device* const device_;
  std::unique_ptr<HostLink> link_;  // the worker's

  std::mutex mutex_;                 // guards what follows, up to status_
  std::condition_variable changed_;  // any of it
  bool open_ = false;
  bool ending_ = false;
  int64_t done_ = 0;
  std::deque<std::function<absl::Status()>> tasks_;
  absl::Status status_;  // the first error; nothing is done after it
  std::thread worker_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_HOST_COMM_H_
