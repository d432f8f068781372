#include "engine/comm/nccl_comm.h"

#include <bit>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "engine/comm/nccl.h"
#include "engine/comm/nccl_memory.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/side_queue.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using nccl::Result;

// How often a wait only yields before it sleeps: a collective of a few megabytes takes less than a
// millisecond, and the core is needed for nothing else; a long one leaves it to the data's threads.
constexpr int kSpins = 2000;
constexpr auto kPause = std::chrono::microseconds(50);
// NCCL's kernels leave when they are aborted; a GPU that does not is not waited for.
constexpr auto kLongestDrain = std::chrono::milliseconds(500);

nccl::DataType TypeOf(DType dtype) {
  return dtype == DType::kF64 ? nccl::DataType::kFloat64 : nccl::DataType::kFloat32;
}

// The additions of a balanced tree over slots of `count` elements: the largest power of two of
// them, then the rest. Adds into `own` where it takes part, so that the whole sum ends there: a + b
// is b + a to the bit.
class TreeSum {
 public:
  TreeSum(DType dtype, int64_t count, void* own) : dtype_(dtype), count_(count), own_(own) {}

  void* Add(void* const* slots, int size) {
    if (size == 1) return slots[0];
    const int left = int(std::bit_floor(unsigned(size - 1)));
    void* into = Add(slots, left);
    void* from = Add(slots + left, size - left);
    if (from == own_) std::swap(into, from);
    ops_.push_back(kernels::AddGradient{.from = View(from), .into = View(into)});
    return into;
  }
  const std::vector<kernels::Op>& ops() const { return ops_; }

 private:
  kernels::Tensor View(void* data) const { return {data, dtype_, 1, count_, count_}; }

  const DType dtype_;
  const int64_t count_;
  void* const own_;
  std::vector<kernels::Op> ops_;
};

class NcclComm : public Comm {
 public:
  NcclComm(ControlChannel* control, kernels::Device* device,
           std::unique_ptr<kernels::SideQueue> queue, nccl::Library library)
      : rank_(control->rank()),
        size_(control->size()),
        control_(control),
        device_(device),
        queue_(std::move(queue)),
        nccl_(std::move(library)) {}
  ~NcclComm() override { Abort(); }
  absl::Status Open();

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status StartSumShares(DType dtype, void* data, void* scratch,
                              const Shares& shares) override;
  absl::Status StartAllGather(const void* mine, void* all, const Shares& shares) override;
  absl::Status StartBroadcast(void* data, int64_t bytes, absl::Span<const int> ranks) override;
  absl::Status Await(int64_t last) override;

 private:
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
  absl::Status SumShares(DType dtype, uint8_t* data, uint8_t* scratch, const Shares& shares);
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

absl::Status NcclComm::Open() {
  nccl::UniqueId id = {};
  if (rank_ == 0) {
    if (const Result made = nccl_.GetUniqueId(&id); made != Result::kSuccess) return ErrorOf(made);
  }
  absl::StatusOr<std::string> bytes =
      control_->FromFirst("NCCL's id", std::string(id.internal, sizeof(id.internal)));
  if (!bytes.ok()) return bytes.status();
  if (bytes->size() != sizeof(id.internal)) {
    return absl::InternalError(absl::StrCat("NCCL's id has ", bytes->size(), " bytes"));
  }
  std::memcpy(id.internal, bytes->data(), sizeof(id.internal));
  control_->BeginCollective("NCCL's start");
  const absl::Status opened = Do([&] {
    nccl::Config config;
    config.max_ctas = SettingsOfNccl(std::getenv).channels;
    const Result begun = nccl_.CommInitRankConfig(&comm_, size_, id, rank_, &config);
    if (begun != Result::kSuccess && begun != Result::kInProgress) return ErrorOf(begun);
    return Poll([this] { return IsReady(); });
  });
  control_->EndCollective();
  return opened;
}

void NcclComm::Abort() {
  if (comm_ == nullptr) return;
  nccl_.CommAbort(comm_);
  comm_ = nullptr;
  if (!queue_->Mark().ok()) return;
  ++marks_;
  const auto end = std::chrono::steady_clock::now() + kLongestDrain;
  while (std::chrono::steady_clock::now() < end) {
    const absl::StatusOr<int64_t> passed = queue_->Passed();
    if (!passed.ok() || *passed == marks_) return;
    std::this_thread::sleep_for(kPause);
  }
}

absl::Status NcclComm::ErrorOf(Result result) {
  const char* const detail = nccl_.GetLastError(comm_);
  const std::string text =
      absl::StrCat("NCCL ", nccl_.version, ": ", nccl_.GetErrorString(result),
                   detail == nullptr || *detail == '\0' ? "" : ": ", detail ? detail : "");
  switch (result) {
    case Result::kSystemError:  // sockets, shared memory
    case Result::kRemoteError:
      return proto::PeerLostError(
          absl::StrCat(text,
                       ". NCCL_DEBUG=INFO says more; the same command goes on from the last "
                       "checkpoint"));
    case Result::kUnhandledCudaError:
      return absl::UnavailableError(absl::StrCat(text, ". NCCL_DEBUG=INFO says more"));
    default:
      return absl::InternalError(text);
  }
}

absl::Status NcclComm::Do(absl::FunctionRef<absl::Status()> body) {
  if (!status_.ok()) return status_;
  status_ = body();
  if (!status_.ok()) Abort();
  return status_;
}

absl::Status NcclComm::Start(absl::FunctionRef<absl::Status()> body) {
  return Do([&]() -> absl::Status {
    if (absl::Status s = queue_->Follow(); !s.ok()) return s;
    if (absl::Status s = body(); !s.ok()) return s;
    if (absl::Status s = queue_->Mark(); !s.ok()) return s;
    started_ = ++marks_;
    return absl::OkStatus();
  });
}

// All ranks are in it, also while NCCL is told: there it may wait for the others' processes.
absl::Status NcclComm::Collective(absl::FunctionRef<absl::Status()> body) {
  control_->BeginCollective("exchange among ranks");
  const absl::Status status = Start(body);
  control_->EndCollective();
  return status;
}

absl::Status NcclComm::Poll(absl::FunctionRef<absl::StatusOr<bool>()> is_done) {
  for (int spins = 0;; ++spins) {
    const absl::StatusOr<bool> done = is_done();
    if (!done.ok()) return done.status();
    if (*done) return absl::OkStatus();
    if (absl::Status s = control_->CheckOthers(); !s.ok()) return s;
    if (spins < kSpins) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kPause);
    }
  }
}

absl::StatusOr<bool> NcclComm::IsReady() {
  Result state = Result::kSuccess;
  if (const Result asked = nccl_.CommGetAsyncError(comm_, &state); asked != Result::kSuccess) {
    return ErrorOf(asked);
  }
  if (state == Result::kInProgress) return false;
  if (state != Result::kSuccess) return ErrorOf(state);
  return true;
}

void NcclComm::Note(Result result) {
  if (result != Result::kInProgress && noted_ == Result::kSuccess) noted_ = result;
}

absl::Status NcclComm::Group(absl::FunctionRef<void()> calls) {
  noted_ = Result::kSuccess;
  Note(nccl_.GroupStart());
  calls();
  Note(nccl_.GroupEnd());
  if (noted_ != Result::kSuccess) return ErrorOf(noted_);
  return Poll([this] { return IsReady(); });
}

absl::Status NcclComm::StartSumShares(DType dtype, void* data, void* scratch,
                                      const Shares& shares) {
  return Collective([&] {
    return SumShares(dtype, static_cast<uint8_t*>(data), static_cast<uint8_t*>(scratch), shares);
  });
}

absl::Status NcclComm::StartAllGather(const void* mine, void* all, const Shares& shares) {
  return Collective([&] {
    return AllGather(static_cast<const uint8_t*>(mine), static_cast<uint8_t*>(all), shares);
  });
}

// Every rank sums its share of the elements, over what the others send it of theirs.
absl::Status NcclComm::SumShares(DType dtype, uint8_t* data, uint8_t* scratch,
                                 const Shares& shares) {
  const nccl::DataType type = TypeOf(dtype);
  const int64_t element = kernels::SizeOf(dtype);
  const auto count = [&](int rank) { return shares[rank + 1] - shares[rank]; };
  const int64_t mine = count(rank_);
  uint8_t* const own = data + shares[rank_] * element;
  std::vector<void*> terms(size_, own);
  const absl::Status exchanged = Group([&] {
    for (int k = 1; k < size_; ++k) {
      const int to = (rank_ + k) % size_, from = (rank_ + size_ - k) % size_;
      if (count(to) > 0) {
        Note(nccl_.Send(data + shares[to] * element, size_t(count(to)), type, to, comm_,
                        queue_->native()));
      }
      terms[from] = scratch + (k - 1) * mine * element;
      if (mine > 0) {
        Note(nccl_.Recv(terms[from], size_t(mine), type, from, comm_, queue_->native()));
      }
    }
  });
  if (!exchanged.ok() || mine == 0) return exchanged;
  TreeSum sum(dtype, mine, own);
  sum.Add(terms.data(), size_);
  return queue_->Run(sum.ops());
}

// A group of broadcasts: unlike those of ncclAllGather, the shares may differ in size.
absl::Status NcclComm::AllGather(const uint8_t* mine, uint8_t* all, const Shares& shares) {
  return Group([&] {
    for (int root = 0; root < size_; ++root) {
      uint8_t* const share = all + shares[root];
      const int64_t bytes = shares[root + 1] - shares[root];
      if (bytes == 0) continue;
      Note(nccl_.Broadcast(root == rank_ ? mine : share, share, size_t(bytes),
                           nccl::DataType::kUint8, root, comm_, queue_->native()));
    }
  });
}

// ncclBroadcast wants all ranks; some of them do with sends.
absl::Status NcclComm::StartBroadcast(void* data, int64_t bytes, absl::Span<const int> ranks) {
  return Start([&] {
    return Group([&] {
      if (ranks[0] != rank_) {
        Note(nccl_.Recv(data, size_t(bytes), nccl::DataType::kUint8, ranks[0], comm_,
                        queue_->native()));
        return;
      }
      for (const int to : ranks.subspan(1)) {
        Note(nccl_.Send(data, size_t(bytes), nccl::DataType::kUint8, to, comm_, queue_->native()));
      }
    });
  });
}

absl::Status NcclComm::Await(int64_t last) {
  // The collectives wait for what the device computes: that is no silence of theirs.
  if (absl::Status s = device_->Synchronize(); !s.ok()) return s;
  control_->BeginCollective("exchange among ranks");
  const absl::Status status = Do([&] {
    return Poll([&]() -> absl::StatusOr<bool> {
      const absl::StatusOr<bool> ready = IsReady();
      if (!ready.ok() || !*ready) return ready;
      const absl::StatusOr<int64_t> passed = queue_->Passed();
      if (!passed.ok()) return passed.status();
      return *passed >= last;
    });
  });
  control_->EndCollective();
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Comm>> CreateNcclComm(ControlChannel* control,
                                                     kernels::Device* device) {
  absl::StatusOr<nccl::Library> library = nccl::Load();
  if (!library.ok()) return library.status();
  absl::StatusOr<std::unique_ptr<kernels::SideQueue>> queue =
      kernels::cuda::CreateSideQueue(device);
  if (!queue.ok()) return queue.status();
  auto comm = std::make_unique<NcclComm>(control, device, *std::move(queue), *std::move(library));
  if (absl::Status s = comm->Open(); !s.ok()) return s;
  return comm;
}

}  // namespace qlora::engine
