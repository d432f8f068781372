#include "engine/comm/host_comm.h"

#include <algorithm>
#include <bit>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/start_thread.h"

namespace qlora::engine {
namespace {

// Bytes of one message: large enough for a link's full rate, small enough that a broadcast shows
// progress and passes from rank to rank.
constexpr int64_t kMessageBytes = 4 << 20;
// Elements summed at a time: what stays in the first cache while the tree is walked.
constexpr int64_t kSumChunk = 1024;

// sum[i] = Σ terms[r][i] by a balanced tree: the largest power of two of terms, then the rest.
template <class T>
void TreeSum(const T* const* terms, int count, int64_t n, T* sum) {
  if (count == 1) {
    std::copy_n(terms[0], n, sum);
    return;
  }
  const int left = int(std::bit_floor(unsigned(count - 1)));
  TreeSum(terms, left, n, sum);
  T right[kSumChunk];
  TreeSum(terms + left, count - left, n, right);
  for (int64_t i = 0; i < n; ++i) sum[i] += right[i];
}

class HostComm : public Comm {
 public:
  HostComm(ControlChannel* control, kernels::Device* device)
      : rank_(control->rank()), size_(control->size()), control_(control), device_(device) {}
  // What has been started is done first.
  ~HostComm() override;
  // Comes back when the link is open, or can't be.
  absl::Status Open(const OpenHostLink& open);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status StartSumShares(kernels::DType dtype, void* data, void* scratch,
                              const Shares& shares) override;
  absl::Status StartAllGather(const void* mine, void* all, const Shares& shares) override;
  absl::Status StartBroadcast(void* data, int64_t bytes, absl::Span<const int> ranks) override;
  absl::Status Await(int64_t last) override;

 private:
  absl::Status Start(std::function<absl::Status()> task);
  absl::Status AwaitWorker(int64_t last);
  void Work(const OpenHostLink& open);
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

absl::Status HostComm::Open(const OpenHostLink& open) {
  absl::StatusOr<std::thread> worker = kernels::StartThread(
      "the thread that exchanges with other ranks", [this, open] { Work(open); });
  if (!worker.ok()) return worker.status();
  worker_ = *std::move(worker);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return open_; });
  return status_;
}

HostComm::~HostComm() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  if (worker_.joinable()) worker_.join();
}

void HostComm::Work(const OpenHostLink& open) {
  absl::StatusOr<std::unique_ptr<HostLink>> link = open();
  std::unique_lock lock(mutex_);
  status_ = link.status();
  if (link.ok()) link_ = *std::move(link);
  open_ = true;
  changed_.notify_all();
  while (status_.ok()) {
    changed_.wait(lock, [&] { return ending_ || !tasks_.empty(); });
    if (tasks_.empty()) break;
    const std::function<absl::Status()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    const absl::Status done = task();
    lock.lock();
    ++done_;
    status_.Update(done);
    changed_.notify_all();
  }
  link_.reset();
}

absl::Status HostComm::Start(std::function<absl::Status()> task) {
  // What the device was told before makes the values that are sent.
  if (absl::Status s = device_->Synchronize(); !s.ok()) return s;
  std::lock_guard lock(mutex_);
  if (!status_.ok()) return status_;
  tasks_.push_back(std::move(task));
  ++started_;
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status HostComm::Await(int64_t last) {
  control_->BeginCollective("exchange among ranks");
  const absl::Status status = AwaitWorker(last);
  control_->EndCollective();
  return status;
}

absl::Status HostComm::AwaitWorker(int64_t last) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !status_.ok() || done_ >= last; });
  return status_;
}

absl::Status HostComm::StartSumShares(kernels::DType dtype, void* data, void* scratch,
                                      const Shares& shares) {
  if (dtype == kernels::DType::kF64) {
    return Start([=, this] {
      return SumShares(static_cast<double*>(data), static_cast<double*>(scratch), shares);
    });
  }
  return Start([=, this] {
    return SumShares(static_cast<float*>(data), static_cast<float*>(scratch), shares);
  });
}

absl::Status HostComm::StartAllGather(const void* mine, void* all, const Shares& shares) {
  return Start([=, this] {
    return AllGather(static_cast<const uint8_t*>(mine), static_cast<uint8_t*>(all), shares);
  });
}

absl::Status HostComm::StartBroadcast(void* data, int64_t bytes, absl::Span<const int> ranks) {
  return Start([=, this, those = std::vector<int>(ranks.begin(), ranks.end())] {
    return Broadcast(static_cast<uint8_t*>(data), bytes, those);
  });
}

absl::Status HostComm::Exchange(int to, const void* send, int64_t send_bytes, int from,
                                void* receive, int64_t receive_bytes) {
  const auto* out = static_cast<const uint8_t*>(send);
  auto* in = static_cast<uint8_t*>(receive);
  for (int64_t at = 0; at < std::max(send_bytes, receive_bytes); at += kMessageBytes) {
    const auto part = [at](int64_t bytes) {
      return std::clamp(bytes - at, int64_t{0}, kMessageBytes);
    };
    const int64_t sent = part(send_bytes), received = part(receive_bytes);
    if (absl::Status s = link_->Exchange(sent > 0 ? to : -1, out + at, sent,
                                         received > 0 ? from : -1, in + at, received);
        !s.ok()) {
      return s;
    }
    control_->Progress();
  }
  return absl::OkStatus();
}

// Every rank sums its share of the elements, over what the others send it of theirs.
template <class T>
absl::Status HostComm::SumShares(T* data, T* scratch, const Shares& shares) {
  const auto bytes = [&](int rank) { return (shares[rank + 1] - shares[rank]) * sizeof(T); };
  const int64_t mine = shares[rank_ + 1] - shares[rank_];
  T* const sums = data + shares[rank_];
  std::vector<const T*> terms(size_);
  terms[rank_] = sums;
  for (int k = 1; k < size_; ++k) {
    const int to = (rank_ + k) % size_, from = (rank_ + size_ - k) % size_;
    T* const slot = scratch + (k - 1) * mine;
    terms[from] = slot;
    if (absl::Status s = Exchange(to, data + shares[to], bytes(to), from, slot, bytes(rank_));
        !s.ok()) {
      return s;
    }
  }
  for (int64_t at = 0; at < mine; at += kSumChunk) {
    const int64_t n = std::min(kSumChunk, mine - at);
    std::vector<const T*> here(size_);
    for (int r = 0; r < size_; ++r) here[r] = terms[r] + at;
    T sum[kSumChunk];
    TreeSum(here.data(), size_, n, sum);
    std::copy_n(sum, n, sums + at);
  }
  return absl::OkStatus();
}

// Every rank sends its share to each other one.
absl::Status HostComm::AllGather(const uint8_t* mine, uint8_t* all, const Shares& shares) {
  const auto bytes = [&](int rank) { return shares[rank + 1] - shares[rank]; };
  for (int k = 1; k < size_; ++k) {
    const int to = (rank_ + k) % size_, from = (rank_ + size_ - k) % size_;
    if (absl::Status s = Exchange(to, mine, bytes(rank_), from, all + shares[from], bytes(from));
        !s.ok()) {
      return s;
    }
  }
  if (uint8_t* const own = all + shares[rank_]; own != mine) {
    std::copy_n(mine, bytes(rank_), own);
  }
  return absl::OkStatus();
}

// Along the ranks, message by message: each link carries the bytes once, and all links work at a
// time.
absl::Status HostComm::Broadcast(uint8_t* data, int64_t bytes, absl::Span<const int> ranks) {
  const auto place = std::find(ranks.begin(), ranks.end(), rank_);
  const int before = place == ranks.begin() ? -1 : *(place - 1);
  const int after = place + 1 == ranks.end() ? -1 : *(place + 1);
  for (int64_t at = 0; at < bytes; at += kMessageBytes) {
    const int64_t n = std::min(kMessageBytes, bytes - at);
    if (absl::Status s = link_->Exchange(-1, nullptr, 0, before, data + at, n); !s.ok()) return s;
    if (absl::Status s = link_->Exchange(after, data + at, n, -1, nullptr, 0); !s.ok()) return s;
    control_->Progress();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Comm>> CreateHostComm(ControlChannel* control,
                                                     kernels::Device* device,
                                                     const OpenHostLink& open) {
  auto comm = std::make_unique<HostComm>(control, device);
  if (absl::Status s = comm->Open(open); !s.ok()) return s;
  return comm;
}

}  // namespace qlora::engine
