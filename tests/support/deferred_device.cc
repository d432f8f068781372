#include "tests/support/deferred_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "tests/support/counted_random.h"

namespace qlora::kernels::optest {
namespace {

// A device may start whenever it likes. This one does when so many ops are queued: finding the
// conflicts of a queue takes time that grows with its square.
constexpr size_t kQueueLimit = 4096;

// Both mappings of every live allocation, by the host's address. Global because a Buffer releases
// itself by address alone, and may outlive its device.
class Mappings {
 public:
  static Mappings& Get() {
    static Mappings* const kMappings = new Mappings;
    return *kMappings;
  }

  absl::StatusOr<void*> Add(int64_t bytes) {
    const auto refused = [&](const char* call) {
      return absl::ResourceExhaustedError(
          absl::StrCat(call, " of ", bytes, " bytes of device memory: ", std::strerror(errno)));
    };
    const int file = memfd_create("deferred device memory", MFD_CLOEXEC);
    if (file < 0) return refused("memfd_create");
    if (ftruncate(file, bytes) != 0) {
      close(file);
      return refused("ftruncate");
    }
    void* hidden = mmap(nullptr, bytes, PROT_NONE, MAP_SHARED, file, 0);
    void* open = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (hidden == MAP_FAILED || open == MAP_FAILED) {
      if (hidden != MAP_FAILED) munmap(hidden, bytes);
      if (open != MAP_FAILED) munmap(open, bytes);
      return refused("mmap");
    }
    std::lock_guard lock(mutex_);
    mappings_[Address(hidden)] = {static_cast<uint8_t*>(open), bytes};
    return hidden;
  }

  static void Remove(void* hidden, int64_t bytes) {
    Mappings& self = Get();
    std::lock_guard lock(self.mutex_);
    const auto found = self.mappings_.find(Address(hidden));
    munmap(found->second.open, bytes);
    munmap(hidden, bytes);
    self.mappings_.erase(found);
  }

  // Where the bytes can be reached; null where they do not lie in one allocation.
  uint8_t* Open(const void* hidden, int64_t bytes) {
    std::lock_guard lock(mutex_);
    auto found = mappings_.upper_bound(Address(hidden));
    if (found == mappings_.begin()) return nullptr;
    --found;
    const int64_t offset = int64_t(Address(hidden) - found->first);
    return offset + bytes <= found->second.bytes ? found->second.open + offset : nullptr;
  }

 private:
  struct Mapping {
    uint8_t* open;
    int64_t bytes;
  };
  static uintptr_t Address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

  std::mutex mutex_;
  std::map<uintptr_t, Mapping> mappings_;
};

template <class View>
constexpr bool kWritten = std::is_same_v<std::remove_cvref_t<View>, Tensor>;

}  // namespace

class DeferredPiece : public Piece {
 public:
  DeferredPiece(DeferredDevice& device, std::vector<Op> ops)
      : device_(device), ops_(std::move(ops)) {}
  absl::Status Run() override { return device_.Enqueue(ops_); }

 private:
  DeferredDevice& device_;
  const std::vector<Op> ops_;
};

DeferredDevice::DeferredDevice(std::unique_ptr<Device> inner, DeferredOptions options)
    : inner_(std::move(inner)), options_(std::move(options)) {
  info_ = inner_->info();
  info_.name = absl::StrCat("deferred, seed ", options_.seed, ", over ", info_.name);
  info_.is_host = false;
}

DeferredDevice::~DeferredDevice() {
  if (queue_.empty()) return;
  std::fprintf(stderr, "%zu ops were queued and never waited for\n", queue_.size());
  std::abort();
}

absl::StatusOr<Buffer> DeferredDevice::Allocate(int64_t bytes) {
  if (bytes < 0) return absl::InvalidArgumentError(absl::StrCat("buffer of ", bytes, " bytes"));
  if (bytes == 0) return Buffer();
  absl::StatusOr<void*> hidden = Mappings::Get().Add(bytes);
  if (!hidden.ok()) return hidden.status();
  return Buffer(*hidden, bytes, &Mappings::Remove);
}

// The slots are device memory; the windows' home is the host's.
class DeferredPagedMemory : public PagedMemory {
 public:
  DeferredPagedMemory(const PagedShape& shape, DeferredDevice& device, Buffer on_device)
      : PagedMemory(shape),
        device_(device),
        on_device_(std::move(on_device)),
        home_(shape.windows - (shape.slots > 0 ? shape.resident : shape.windows),
              std::vector<uint8_t>(shape.window_bytes)),
        state_(shape.windows, State::kAway) {
    // Without slots all windows can be reached where they are.
    for (int64_t w = 0; w < shape.windows; ++w) {
      if (shape.IsResident(w) || shape.slots == 0) state_[w] = State::kUsable;
    }
    device_.paged_.push_back(this);
  }
  ~DeferredPagedMemory() override { std::erase(device_.paged_, this); }

  static int64_t PlacesOf(const PagedShape& shape) {
    if (shape.IsLent()) return shape.resident;
    return shape.slots > 0 ? shape.resident + shape.slots : shape.windows;
  }

  void* Address(int64_t w) const override {
    if (shape().IsLent() && !shape().IsResident(w)) return shape().LentSlot(shape().SlotOf(w));
    return static_cast<uint8_t*>(on_device_.data()) + Place(w) * shape().window_bytes;
  }
  absl::Status Bring(int64_t w) override {
    if (shape().slots == 0) return absl::OkStatus();
    TakeSlot(w, "Bring");
    state_[w] = State::kOnItsWay;
    device_.moved_in_ += shape().window_bytes;
    return device_.Enqueue({"bring",
                            [this, w] {
                              std::memcpy(Open(w), Home(w).data(), shape().window_bytes);
                              return absl::OkStatus();
                            },
                            {SpanOf(w)}});
  }
  absl::Status Await(int64_t w) override {
    Require(state_[w] != State::kAway, "Await of a window that was not brought,", w);
    state_[w] = State::kUsable;
    return absl::OkStatus();
  }
  absl::Status Evict(int64_t w) override {
    if (shape().IsResident(w) || shape().slots == 0) return absl::OkStatus();
    Require(state_[w] == State::kUsable, "Evict", w);
    state_[w] = shape().IsLent() ? State::kLeaving : State::kAway;
    device_.moved_out_ += shape().window_bytes;
    return device_.Enqueue({"evict",
                            [this, w] {
                              std::memcpy(Home(w).data(), Open(w), shape().window_bytes);
                              std::memset(Open(w), 0xcd, shape().window_bytes);
                              return absl::OkStatus();
                            },
                            {SpanOf(w)}});
  }
  absl::Status Reclaim(int64_t slot) override {
    for (int64_t w = shape().resident; w < shape().windows; ++w) {
      if (shape().SlotOf(w) != slot) continue;
      Require(state_[w] == State::kAway || state_[w] == State::kLeaving, "Reclaim", w);
      state_[w] = State::kAway;
    }
    return absl::OkStatus();
  }
  absl::Status Claim(int64_t w) override {
    if (shape().IsResident(w) || shape().slots == 0) return absl::OkStatus();
    TakeSlot(w, "Claim");
    state_[w] = State::kUsable;
    return Spoil(w);
  }
  absl::Status Drop(int64_t w) override {
    if (shape().IsResident(w) || shape().slots == 0) return absl::OkStatus();
    Require(state_[w] == State::kUsable, "Drop", w);
    state_[w] = State::kAway;
    return Spoil(w);
  }
  absl::Status Read(int64_t w, int64_t offset, void* to, int64_t bytes) override {
    if (absl::Status s = device_.Synchronize(); !s.ok()) return s;
    std::memcpy(to, Where(w) + offset, bytes);
    return absl::OkStatus();
  }
  absl::Status Write(int64_t w, int64_t offset, const void* from, int64_t bytes) override {
    if (absl::Status s = device_.Synchronize(); !s.ok()) return s;
    std::memcpy(Where(w) + offset, from, bytes);
    return absl::OkStatus();
  }

  // Ends the test where an op uses bytes of a slot that holds no awaited window; where the slot is
  // lent, where any op but the update uses bytes that were not given back.
  void CheckUse(const char* op, uintptr_t begin, uintptr_t end) const {
    for (int64_t w = shape().resident; shape().IsLent() && w < shape().windows; ++w) {
      const Span slot = SpanOf(w);
      if (state_[w] == State::kAway || begin >= slot.end || slot.begin >= end) continue;
      Require(state_[w] == State::kUsable && op == absl::string_view(AdamW::kName), op, w);
    }
    const uintptr_t base = reinterpret_cast<uintptr_t>(on_device_.data());
    if (begin >= base + on_device_.bytes() || end <= base) return;
    const int64_t place = int64_t(begin - base) / shape().window_bytes;
    for (int64_t w = 0; w < shape().windows; ++w) {
      if (Place(w) == place && state_[w] == State::kUsable) return;
    }
    Require(false, op, place);
  }

 private:
  using Span = DeferredDevice::Span;
  enum class State { kAway, kOnItsWay, kUsable, kLeaving };

  static void Require(bool condition, const char* what, int64_t number) {
    if (condition) return;
    std::fprintf(stderr, "paged memory used out of turn: %s %lld\n", what, (long long)number);
    std::abort();
  }
  // What leaves is out of the way before what comes: their moves are ordered.
  void TakeSlot(int64_t w, const char* what) {
    Require(!shape().IsResident(w), what, w);
    for (int64_t other = shape().resident; other < shape().windows; ++other) {
      if (Place(other) != Place(w)) continue;
      Require(state_[other] == State::kAway || state_[other] == State::kLeaving, what, w);
      state_[other] = State::kAway;
    }
  }
  absl::Status Spoil(int64_t w) {
    return device_.Enqueue({"spoil",
                            [this, w] {
                              std::memset(Open(w), 0xcd, shape().window_bytes);
                              return absl::OkStatus();
                            },
                            {SpanOf(w)}});
  }
  int64_t Place(int64_t w) const {
    if (shape().IsResident(w) || shape().slots == 0) return w;
    return shape().resident + shape().SlotOf(w);
  }
  Span SpanOf(int64_t w) const {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(Address(w));
    return {begin, begin + uintptr_t(shape().window_bytes), true};
  }
  uint8_t* Open(int64_t w) const { return Mappings::Get().Open(Address(w), shape().window_bytes); }
  std::vector<uint8_t>& Home(int64_t w) { return home_[w - shape().resident]; }
  uint8_t* Where(int64_t w) {
    const bool is_home = state_[w] == State::kAway || state_[w] == State::kLeaving;
    return is_home ? Home(w).data() : Open(w);
  }

  DeferredDevice& device_;
  const Buffer on_device_;
  std::vector<std::vector<uint8_t>> home_;
  std::vector<State> state_;
};

absl::StatusOr<std::unique_ptr<PagedMemory>> DeferredDevice::AllocatePaged(
    const PagedShape& shape) {
  absl::StatusOr<Buffer> on_device =
      Allocate(DeferredPagedMemory::PlacesOf(shape) * shape.window_bytes);
  if (!on_device.ok()) return on_device.status();
  return std::make_unique<DeferredPagedMemory>(shape, *this, *std::move(on_device));
}

absl::StatusOr<std::unique_ptr<Piece>> DeferredDevice::Prepare(std::vector<Op> ops) {
  absl::Status status;
  for (const Op& op : ops) {
    VisitTensors(op, [&](const char* name, const auto& t) {
      if (!t || t.Extent() == 0 || Mappings::Get().Open(t.data, t.Extent()) != nullptr) return;
      status.Update(absl::InvalidArgumentError(
          absl::StrCat("operand ", name, " of ", NameOf(op), ", ", t.Extent(),
                       " bytes, lies in no buffer of this device")));
    });
  }
  if (!status.ok()) return status;
  return std::make_unique<DeferredPiece>(*this, std::move(ops));
}

std::vector<DeferredDevice::Span> DeferredDevice::SpansOf(const Op& op) const {
  std::vector<Span> spans;
  VisitTensors(op, [&](const char* name, const auto& t) {
    if (!t || t.Extent() == 0) return;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(t.data);
    Span span{begin, begin + uintptr_t(t.Extent()), kWritten<decltype(t)>};
    if (options_.declared != nullptr) {
      const DeferredOptions::Declared declared = options_.declared(NameOf(op), name);
      if (declared == DeferredOptions::Declared::kNotAtAll) return;
      if (declared == DeferredOptions::Declared::kAsRead) span.written = false;
    }
    spans.push_back(span);
  });
  return spans;
}

absl::Status DeferredDevice::Enqueue(const std::vector<Op>& ops) {
  for (const Op& op : ops) {
    std::vector<Span> spans = SpansOf(op);
    for (const DeferredPagedMemory* paged : paged_) {
      for (const Span& span : spans) paged->CheckUse(NameOf(op), span.begin, span.end);
    }
    const absl::Status status =
        Enqueue({NameOf(op), [this, op] { return Execute(op); }, std::move(spans)});
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status DeferredDevice::Enqueue(Queued queued) {
  if (queue_.size() >= kQueueLimit) failure_.Update(RunQueue());
  queue_.push_back(std::move(queued));
  return absl::OkStatus();
}

absl::Status DeferredDevice::Synchronize() {
  absl::Status status = std::exchange(failure_, absl::OkStatus());
  status.Update(RunQueue());
  return status;
}

absl::Status DeferredDevice::RunQueue() {
  const std::vector<Queued> queue = std::exchange(queue_, {});
  const int64_t n = int64_t(queue.size());
  // waits_for[i] ops must run before op i; frees[i] are those that wait for op i.
  std::vector<int> waits_for(n);
  std::vector<std::vector<int64_t>> frees(n);
  for (int64_t later = 0; later < n; ++later) {
    for (int64_t earlier = 0; earlier < later; ++earlier) {
      bool conflict = false;
      for (const Span& a : queue[later].spans) {
        for (const Span& b : queue[earlier].spans) conflict |= a.Conflicts(b);
      }
      if (!conflict) continue;
      ++waits_for[later];
      frees[earlier].push_back(later);
    }
  }
  CountedRandom random(options_.seed * 1000003 + uint64_t(rounds_++));
  std::vector<int64_t> ready;
  for (int64_t i = 0; i < n; ++i) {
    if (waits_for[i] == 0) ready.push_back(i);
  }
  last_order_.clear();
  while (!ready.empty()) {
    std::swap(ready[random.Below(int64_t(ready.size()))], ready.back());
    const int64_t next = ready.back();
    ready.pop_back();
    for (int64_t i : frees[next]) {
      if (--waits_for[i] == 0) ready.push_back(i);
    }
    if (!last_order_.empty() && next < last_order_.back()) ++overtakings_;
    last_order_.push_back(next);
  }
  absl::Status status;
  std::thread([&] {
    for (int64_t i : last_order_) status.Update(queue[i].run());
  }).join();
  ops_run_ += n;
  return status;
}

absl::Status DeferredDevice::Execute(Op op) {
  VisitTensors(op, [&](const char* name, auto& t) {
    if (!t || t.Extent() == 0) return;
    if (options_.declared != nullptr &&
        options_.declared(NameOf(op), name) == DeferredOptions::Declared::kNotAtAll) {
      return;
    }
    t.data = Mappings::Get().Open(t.data, t.Extent());
    if (t.data == nullptr) {
      std::fprintf(stderr, "operand %s of %s was released while the op was queued\n", name,
                   NameOf(op));
      std::abort();
    }
  });
  std::vector<Op> one;
  one.push_back(std::move(op));
  return inner_->RunOnce(std::move(one));
}

absl::Status DeferredDevice::CheckNoRace(const void* device, int64_t bytes, bool written,
                                         const char* what) const {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(device);
  const Span access{begin, begin + uintptr_t(bytes), written};
  for (const Queued& queued : queue_) {
    for (const Span& span : queued.spans) {
      if (!span.Conflicts(access)) continue;
      return absl::FailedPreconditionError(
          absl::StrCat(what, " of ", bytes, " bytes that a queued ", queued.name,
                       span.written ? " writes" : " reads", "; call Synchronize first"));
    }
  }
  return absl::OkStatus();
}

absl::Status DeferredDevice::Stage(void* device, const void* host, int64_t bytes) {
  if (!CheckNoRace(device, bytes, true, "Stage").ok()) {
    if (absl::Status s = RunQueue(); !s.ok()) return s;
  }
  return CopyIn(device, host, bytes);
}

absl::Status DeferredDevice::CopyIn(void* device, const void* host, int64_t bytes) {
  if (bytes == 0) return absl::OkStatus();
  if (absl::Status s = CheckNoRace(device, bytes, true, "CopyIn"); !s.ok()) return s;
  uint8_t* open = Mappings::Get().Open(device, bytes);
  if (open == nullptr) return absl::InvalidArgumentError("CopyIn to no buffer of this device");
  std::memcpy(open, host, bytes);
  return absl::OkStatus();
}

absl::Status DeferredDevice::CopyOut(void* host, const void* device, int64_t bytes) {
  if (bytes == 0) return absl::OkStatus();
  if (absl::Status s = CheckNoRace(device, bytes, false, "CopyOut"); !s.ok()) return s;
  const uint8_t* open = Mappings::Get().Open(device, bytes);
  if (open == nullptr) return absl::InvalidArgumentError("CopyOut of no buffer of this device");
  std::memcpy(host, open, bytes);
  return absl::OkStatus();
}

}  // namespace qlora::kernels::optest
