#include "engine/comm/host_comm.h"

#include <algorithm>
#include <bit>
#include <utility>

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

}  // namespace

absl::StatusOr<std::unique_ptr<HostComm>> HostComm::Create(ControlChannel* control,
                                                           kernels::Device* device,
                                                           const OpenLink& open) {
  std::unique_ptr<HostComm> comm(new HostComm(control, device));
  comm->worker_ = std::thread([raw = comm.get(), open] { raw->Work(open); });
  absl::MutexLock lock(&comm->mutex_);
  const auto is_open = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(comm->mutex_) {
    return comm->open_ || !comm->status_.ok();
  };
  comm->mutex_.Await(absl::Condition(&is_open));
  if (!comm->status_.ok()) return comm->status_;
  return comm;
}

HostComm::~HostComm() {
  {
    absl::MutexLock lock(&mutex_);
    ending_ = true;
  }
  worker_.join();
}

void HostComm::Work(const OpenLink& open) {
  absl::StatusOr<std::unique_ptr<HostLink>> link = open();
  absl::MutexLock lock(&mutex_);
  status_ = link.status();
  if (link.ok()) link_ = *std::move(link);
  open_ = true;
  while (status_.ok()) {
    const auto is_needed = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return ending_ || !tasks_.empty();
    };
    mutex_.Await(absl::Condition(&is_needed));
    if (tasks_.empty()) break;
    const std::function<absl::Status()> task = std::move(tasks_.front());
    tasks_.pop_front();
    busy_ = true;
    mutex_.Unlock();
    const absl::Status done = task();
    mutex_.Lock();
    busy_ = false;
    status_.Update(done);
  }
  link_.reset();
}

absl::Status HostComm::Start(std::function<absl::Status()> task) {
  // What the device was told before makes the values that are sent.
  if (absl::Status s = device_->Synchronize(); !s.ok()) return s;
  absl::MutexLock lock(&mutex_);
  if (!status_.ok()) return status_;
  tasks_.push_back(std::move(task));
  return absl::OkStatus();
}

absl::Status HostComm::Finish() {
  control_->BeginCollective("sums over ranks");
  const absl::Status status = AwaitWorker();
  control_->EndCollective();
  return status;
}

absl::Status HostComm::AwaitWorker() {
  absl::MutexLock lock(&mutex_);
  const auto is_idle = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !status_.ok() || (!busy_ && tasks_.empty());
  };
  mutex_.Await(absl::Condition(&is_idle));
  return status_;
}

absl::Status HostComm::StartSum(kernels::DType dtype, void* data, void* scratch, int64_t count) {
  if (dtype == kernels::DType::kF64) {
    return Start([=, this] {
      return Sum(static_cast<double*>(data), static_cast<double*>(scratch), count);
    });
  }
  return Start(
      [=, this] { return Sum(static_cast<float*>(data), static_cast<float*>(scratch), count); });
}

absl::Status HostComm::StartBroadcast(void* data, int64_t bytes, int root) {
  return Start([=, this] { return Broadcast(static_cast<uint8_t*>(data), bytes, root); });
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

// Every rank sums its share of the elements, over what the others send it of theirs; then the
// shares go round. Both ways each rank sends (size − 1)/size of the data: as little as any sum
// that leaves equal bytes everywhere.
template <class T>
absl::Status HostComm::Sum(T* data, T* scratch, int64_t count) {
  const auto begin = [&](int rank) { return ShareBegin(count, size_, rank); };
  const auto bytes = [&](int rank) { return (begin(rank + 1) - begin(rank)) * int64_t(sizeof(T)); };
  const int64_t mine = begin(rank_ + 1) - begin(rank_);
  std::vector<const T*> terms(size_);
  terms[rank_] = data + begin(rank_);
  for (int k = 1; k < size_; ++k) {
    const int to = (rank_ + k) % size_, from = (rank_ + size_ - k) % size_;
    T* const slot = scratch + (k - 1) * mine;
    terms[from] = slot;
    if (absl::Status s = Exchange(to, data + begin(to), bytes(to), from, slot, bytes(rank_));
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
    std::copy_n(sum, n, data + begin(rank_) + at);
  }
  for (int k = 1; k < size_; ++k) {
    const int to = (rank_ + k) % size_, from = (rank_ + size_ - k) % size_;
    if (absl::Status s =
            Exchange(to, data + begin(rank_), bytes(rank_), from, data + begin(from), bytes(from));
        !s.ok()) {
      return s;
    }
  }
  return absl::OkStatus();
}

// Along the ranks from the root on, message by message: each link carries the bytes once, and all
// links work at a time.
absl::Status HostComm::Broadcast(uint8_t* data, int64_t bytes, int root) {
  const int place = (rank_ - root + size_) % size_;
  const int before = place == 0 ? -1 : (rank_ + size_ - 1) % size_;
  const int after = place == size_ - 1 ? -1 : (rank_ + 1) % size_;
  for (int64_t at = 0; at < bytes; at += kMessageBytes) {
    const int64_t n = std::min(kMessageBytes, bytes - at);
    if (absl::Status s = link_->Exchange(-1, nullptr, 0, before, data + at, n); !s.ok()) return s;
    if (absl::Status s = link_->Exchange(after, data + at, n, -1, nullptr, 0); !s.ok()) return s;
    control_->Progress();
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
