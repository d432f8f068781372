#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <array>
#include <deque>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/library_attention.h"
#include "kernels/cuda/linear_table.h"
#include "kernels/cuda/linear_variants.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/paged_memory.h"
#include "kernels/cuda/piece_clock.h"
#include "kernels/cuda/poll.h"
#include "kernels/cuda/rms_norm_products_layout.h"
#include "kernels/cuda/staging.h"

namespace qlora::kernels::cuda {
namespace {

// Compute capabilities of the cards on which bench/gpu_qualify.sh has passed, each with its results
// in bench/results/. None yet.
bool IsQualified(int major, int minor) {
  constexpr std::array<std::pair<int, int>, 0> kQualified = {};
  return std::find(kQualified.begin(), kQualified.end(), std::pair(major, minor)) !=
         kQualified.end();
}

absl::Status StartAll(const std::vector<Op>& ops, gpu::Stream stream, const gpu::Properties& card) {
  gpu::Launcher launcher(stream);
  const Context context{launcher, card};
  for (const Op& op : ops) {
    const gpu::NamedRange range(NameOf(op));
    std::visit([&](const auto& o) { cuda::Run(o, context); }, op);
  }
  return launcher.status();
}

class StartedPiece : public Piece {
 public:
  StartedPiece(std::vector<Op> ops, gpu::Stream stream, const gpu::Properties& card,
               PieceClock* clock)
      : ops_(std::move(ops)), stream_(stream), card_(card), clock_(*clock) {}
  absl::Status Run() override {
    return clock_.Time(stream_, [this] { return StartAll(ops_, stream_, card_); });
  }

 private:
  const std::vector<Op> ops_;
  const gpu::Stream stream_;
  const gpu::Properties& card_;
  PieceClock& clock_;
};

class CapturedPiece : public Piece {
 public:
  CapturedPiece(gpu::Graph graph, gpu::Stream stream, PieceClock* clock)
      : graph_(graph), stream_(stream), clock_(*clock) {}
  ~CapturedPiece() override { gpu::DestroyGraph(graph_); }
  absl::Status Run() override {
    return clock_.Time(stream_, [this] { return gpu::LaunchGraph(graph_, stream_); });
  }

 private:
  const gpu::Graph graph_;
  const gpu::Stream stream_;
  PieceClock& clock_;
};

class CudaDevice : public Device {
 public:
  CudaDevice(const CudaOptions& options, gpu::Properties card, int64_t free_bytes,
             gpu::Stream stream)
      : options_(options), card_(std::move(card)), stream_(stream) {
    // Not which one: ranks on equal cards make equal bytes.
    info_.name = absl::StrCat("cuda (", card_.name, ")");
    info_.memory_bytes = free_bytes;
    info_.is_qualified = IsQualified(card_.major, card_.minor);
  }
  ~CudaDevice() override { gpu::DestroyStream(stream_); }

  const DeviceInfo& info() const override { return info_; }
  int64_t WorkspaceBytes(const Op& op) const override {
    if (AsksForLibrary(op)) return LibraryAttentionBytes(op, card_).value_or(0);
    return cuda::WorkspaceBytes(op, card_);
  }
  absl::Status Accept(const Op& op) const override {
    return AsksForLibrary(op) ? LibraryAttentionBytes(op, card_).status() : absl::OkStatus();
  }
  std::vector<LinearVariant> Variants(const Op& op) const override { return VariantsOf(op, card_); }
  int64_t TailColumns(const Op& op) const override { return TailColumnsOf(op); }
  int64_t FirstProductRank(const Op& op) const override { return FirstProductRankOf(op, card_); }
  int64_t PrivateBytes() const override { return 0; }

  absl::StatusOr<Buffer> Allocate(int64_t bytes) override {
    if (bytes < 0) return absl::InvalidArgumentError(absl::StrCat("buffer of ", bytes, " bytes"));
    if (bytes == 0) return Buffer();
    absl::StatusOr<void*> data = gpu::AllocateDevice(bytes);
    if (!data.ok()) return data.status();
    Buffer buffer(*data, bytes, [](void* p, int64_t) { gpu::FreeDevice(p); });
    if (absl::Status s = gpu::FillZeroAsync(*data, bytes, stream_); !s.ok()) return s;
    if (absl::Status s = Synchronize(); !s.ok()) return s;
    return buffer;
  }

  absl::StatusOr<std::unique_ptr<PagedMemory>> AllocatePaged(const PagedShape& shape) override {
    return CreatePagedMemory(shape, card_, stream_);
  }

  absl::StatusOr<std::unique_ptr<Piece>> Prepare(std::vector<Op> ops) override {
    if (!options_.capture) {
      return std::make_unique<StartedPiece>(std::move(ops), stream_, card_, &clock_);
    }
    if (absl::Status s = gpu::BeginCapture(stream_); !s.ok()) return s;
    const absl::Status started = StartAll(ops, stream_, card_);
    absl::StatusOr<gpu::Graph> graph = gpu::EndCapture(stream_);
    if (graph.ok() && !started.ok()) gpu::DestroyGraph(*graph);
    if (!started.ok()) return started;
    if (!graph.ok()) return graph.status();
    return std::make_unique<CapturedPiece>(*graph, stream_, &clock_);
  }

  absl::Status Stage(void* device, const void* host, int64_t bytes) override {
    return staging_.Send(device, host, bytes, stream_);
  }
  absl::Status CopyIn(void* device, const void* host, int64_t bytes) override {
    if (absl::Status s = Stage(device, host, bytes); !s.ok()) return s;
    return Synchronize();
  }
  absl::Status CopyOut(void* host, const void* device, int64_t bytes) override {
    if (absl::Status s = gpu::CopyAsync(host, device, bytes, stream_); !s.ok()) return s;
    return Synchronize();
  }
  absl::Status Synchronize() override {
    if (absl::Status s = gpu::Synchronize(stream_); !s.ok()) return s;
    return clock_.Collect();
  }
  double BusySeconds() const override { return clock_.seconds(); }

  gpu::Stream stream() const { return stream_; }
  const gpu::Properties& card() const { return card_; }

 private:
  const CudaOptions options_;
  const gpu::Properties card_;
  const gpu::Stream stream_;
  StagingRing staging_;
  PieceClock clock_;
  DeviceInfo info_;
};

class CudaSideQueue : public SideQueue {
 public:
  CudaSideQueue(CudaDevice* device, gpu::Stream stream, gpu::Event told)
      : device_(*device), stream_(stream), told_(told) {}
  ~CudaSideQueue() override {
    gpu::DestroyStream(stream_);
    gpu::DestroyEvent(told_);
    free_.insert(free_.end(), marks_.begin(), marks_.end());
    for (const gpu::Event event : free_) gpu::DestroyEvent(event);
  }

  absl::Status Follow() override {
    if (absl::Status s = gpu::Record(told_, device_.stream()); !s.ok()) return s;
    return gpu::Wait(stream_, told_);
  }
  absl::Status Run(const std::vector<Op>& ops) override {
    return StartAll(ops, stream_, device_.card());
  }
  absl::Status Mark() override {
    if (free_.empty()) {
      absl::StatusOr<gpu::Event> event = gpu::CreateEvent();
      if (!event.ok()) return event.status();
      free_.push_back(*event);
    }
    if (absl::Status s = gpu::Record(free_.back(), stream_); !s.ok()) return s;
    marks_.push_back(free_.back());
    free_.pop_back();
    return absl::OkStatus();
  }
  absl::StatusOr<int64_t> Passed() override {
    while (!marks_.empty()) {
      const absl::StatusOr<bool> passed = gpu::HasPassed(marks_.front());
      if (!passed.ok()) return passed.status();
      if (!*passed) break;
      free_.push_back(marks_.front());
      marks_.pop_front();
      ++passed_;
    }
    return passed_;
  }
  void* native() const override { return stream_; }

 private:
  const CudaDevice& device_;
  const gpu::Stream stream_;
  const gpu::Event told_;         // recorded behind what the device was told
  std::deque<gpu::Event> marks_;  // not passed yet
  std::vector<gpu::Event> free_;
  int64_t passed_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SideQueue>> CreateSideQueue(Device* device) {
  auto* const cuda_device = dynamic_cast<CudaDevice*>(device);
  if (cuda_device == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(device->info().name, " is no device of the CUDA backend"));
  }
  absl::StatusOr<gpu::Event> told = gpu::CreateEvent();
  if (!told.ok()) return told.status();
  absl::StatusOr<gpu::Stream> stream = gpu::CreateStream();
  if (!stream.ok()) {
    gpu::DestroyEvent(*told);
    return stream.status();
  }
  return std::make_unique<CudaSideQueue>(cuda_device, *stream, *told);
}

absl::StatusOr<std::unique_ptr<Device>> CreateCudaDevice(const CudaOptions& options) {
  absl::StatusOr<gpu::Properties> card = gpu::OpenDevice(options.ordinal);
  if (!card.ok()) return card.status();
  if (card->major < kOldestMajor) {
    return absl::NotFoundError(
        absl::StrCat("GPU ", options.ordinal, " (", card->name, ") has compute capability ",
                     card->major, ".", card->minor, "; the oldest that this program runs on is ",
                     kOldestMajor, ".0 (bf16 tensor cores)"));
  }
  absl::StatusOr<gpu::Stream> stream = gpu::CreateStream();
  if (!stream.ok()) return stream.status();
  // The context exists by now: what it takes is no longer free.
  absl::StatusOr<gpu::MemoryState> memory = gpu::DeviceMemory();
  if (!memory.ok()) return memory.status();
  return std::make_unique<CudaDevice>(options, *std::move(card), memory->free, *stream);
}

}  // namespace qlora::kernels::cuda
