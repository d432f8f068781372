// The GPU runtime of the SIMT executor. Streams are queues that run when somebody waits, in an
// order that the seed chooses among those that events allow; device memory can be touched only
// while the queue runs: elsewhere a read of it ends the process, as it should. So does touching
// managed memory on the other side of the bus: the card may where it was advised to, the host
// never.

#include "tests/support/simt/runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gpu/launch.h"
#include "kernels/cuda/poll.h"
#include "tests/support/simt/executor.h"

namespace qlora::gpu {

struct EventState {
  int64_t recorded = 0;                        // how often Record was called
  int64_t reached = 0;                         // the last Record that the stream has passed
  std::chrono::steady_clock::time_point time;  // when it did
};

struct Task {
  std::function<absl::Status()> run;
  Event waits_for = nullptr;  // until its `reached` is at least `ticket`
  int64_t ticket = 0;
  std::function<bool()> advance;  // of another library; over when it returns true
};

struct StreamState {
  std::deque<Task> queue;
  bool capturing = false;
  absl::Status capture_error;
  std::vector<Task> captured;
  absl::Status status;
};

struct GraphState {
  std::vector<Task> tasks;
};

namespace {

constexpr int64_t kPage = 4096;
int64_t RoundToPages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

enum class Kind { kDevice, kManaged, kPinned };
struct Region {
  int64_t bytes = 0;
  Kind kind = Kind::kDevice;
  std::vector<bool> on_card;  // managed: page by page
  std::vector<bool> mapped;   // managed: the card may reach the page in host memory
};

struct Runtime {
  simt::CardOptions card;
  simt::RuntimeCounters counters;
  std::map<uint8_t*, Region> regions;
  std::set<Stream> streams;
  uint64_t random = 1;
  bool open = false;

  // Opens or closes device memory to the host's own code.
  void SetOpen(bool value) {
    if (open == value) return;
    open = value;
    for (const auto& [data, region] : regions) {
      if (region.kind == Kind::kDevice) {
        mprotect(data, RoundToPages(region.bytes), value ? PROT_READ | PROT_WRITE : PROT_NONE);
      } else if (region.kind == Kind::kManaged) {
        ProtectManaged(data, region);
      }
    }
  }
  // Gives whoever is at work the pages that it may touch.
  void ProtectManaged(uint8_t* data, const Region& region) const {
    for (size_t page = 0; page < region.on_card.size(); ++page) {
      const bool remote = card.remote_access && region.mapped[page];
      const bool allowed = region.on_card[page] ? open : !open || remote;
      mprotect(data + page * kPage, kPage, allowed ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
  }
  uint64_t Next() { return random = random * 6364136223846793005u + 1442695040888963407u; }
};

Runtime& Get() {
  static Runtime* runtime = new Runtime;
  return *runtime;
}

// Every allocation lies between two pages that nobody may touch.
absl::StatusOr<void*> Map(int64_t bytes, Kind kind) {
  Runtime& r = Get();
  if (bytes == 0) return static_cast<void*>(nullptr);
  if (kind == Kind::kDevice && r.counters.device_bytes + bytes > r.card.memory_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("out of device memory: ", bytes, " bytes asked for, ",
                     r.card.memory_bytes - r.counters.device_bytes, " free"));
  }
  const int64_t size = RoundToPages(bytes);
  uint8_t* base = static_cast<uint8_t*>(mmap(nullptr, size + 2 * kPage, PROT_NONE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (base == MAP_FAILED) return absl::ResourceExhaustedError("mmap failed");
  uint8_t* data = base + kPage;
  if (kind != Kind::kDevice || r.open) mprotect(data, size, PROT_READ | PROT_WRITE);
  Region region;
  region.bytes = bytes;
  region.kind = kind;
  if (kind == Kind::kManaged) {
    region.on_card.assign(size / kPage, false);
    region.mapped.assign(size / kPage, false);
  }
  r.regions[data] = region;
  if (kind == Kind::kDevice) r.counters.device_bytes += bytes;
  return static_cast<void*>(data);
}

void Unmap(void* data) {
  if (data == nullptr) return;
  Runtime& r = Get();
  const auto it = r.regions.find(static_cast<uint8_t*>(data));
  if (it == r.regions.end()) std::abort();  // freed twice, or never allocated
  if (it->second.kind == Kind::kDevice) r.counters.device_bytes -= it->second.bytes;
  r.counters.managed_resident -=
      kPage * std::count(it->second.on_card.begin(), it->second.on_card.end(), true);
  munmap(it->first - kPage, RoundToPages(it->second.bytes) + 2 * kPage);
  r.regions.erase(it);
}

void Enqueue(Stream stream, Task task) {
  if (stream->capturing) {
    stream->captured.push_back(std::move(task));
  } else {
    stream->queue.push_back(std::move(task));
  }
}

bool IsReady(const Task& task) {
  return task.waits_for == nullptr || task.waits_for->reached >= task.ticket;
}

// Runs a task of any stream, chosen by chance among those that may run. False where none may.
bool RunOne() {
  Runtime& r = Get();
  std::vector<Stream> ready;
  for (Stream s : r.streams) {
    if (!s->queue.empty() && IsReady(s->queue.front())) ready.push_back(s);
  }
  while (!ready.empty()) {
    const auto chosen = ready.begin() + (r.Next() >> 33) % ready.size();
    const Stream stream = *chosen;
    ready.erase(chosen);
    Task& first = stream->queue.front();
    if (first.advance && !first.advance()) continue;
    const Task task = std::move(first);
    stream->queue.pop_front();
    // After an error a stream is as dead as on a card: what follows is not run.
    if (task.run && stream->status.ok()) stream->status = task.run();
    return true;
  }
  return false;
}

bool WaitsForAnotherLibrary() {
  const std::set<Stream>& streams = Get().streams;
  return std::any_of(streams.begin(), streams.end(), [](Stream s) {
    return !s->queue.empty() && s->queue.front().advance != nullptr;
  });
}

// Runs tasks until `done`.
absl::Status RunUntil(const std::function<bool()>& done) {
  Runtime& r = Get();
  absl::Status status;
  r.SetOpen(true);
  while (!done()) {
    if (RunOne()) continue;
    if (!WaitsForAnotherLibrary()) {
      status = absl::InternalError("deadlock: every stream waits for an event of another");
      break;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  r.SetOpen(false);
  return status;
}

}  // namespace

absl::StatusOr<int> DeviceCount() { return Get().card.count; }

absl::StatusOr<Properties> OpenDevice(int ordinal) {
  const simt::CardOptions& card = Get().card;
  if (ordinal >= card.count) {
    return absl::NotFoundError(
        absl::StrCat("there is no GPU ", ordinal, "; this machine has ", card.count));
  }
  Properties p;
  p.name = "SIMT executor";
  p.major = card.major;
  p.minor = card.minor;
  p.multiprocessors = 2;
  p.memory_bytes = card.memory_bytes;
  p.shared_bytes = simt::kMaxSharedBytes;
  p.l2_bytes = 1 << 20;
  p.concurrent_managed = card.concurrent_managed;
  return p;
}

absl::StatusOr<MemoryState> DeviceMemory() {
  const Runtime& r = Get();
  return MemoryState{r.card.memory_bytes - r.counters.device_bytes - r.counters.managed_resident,
                     r.card.memory_bytes};
}

absl::StatusOr<void*> AllocateDevice(int64_t bytes) { return Map(bytes, Kind::kDevice); }
void FreeDevice(void* data) { Unmap(data); }
absl::StatusOr<void*> AllocateManaged(int64_t bytes) { return Map(bytes, Kind::kManaged); }
void FreeManaged(void* data) { Unmap(data); }
absl::StatusOr<void*> AllocatePinned(int64_t bytes) { return Map(bytes, Kind::kPinned); }
void FreePinned(void* data) { Unmap(data); }

absl::Status CopyAsync(void* to, const void* from, int64_t bytes, Stream stream) {
  if (bytes == 0) return absl::OkStatus();
  Enqueue(stream, {.run = [=] {
            std::memcpy(to, from, bytes);
            return absl::OkStatus();
          }});
  return absl::OkStatus();
}
absl::Status FillZeroAsync(void* to, int64_t bytes, Stream stream) {
  if (bytes == 0) return absl::OkStatus();
  Enqueue(stream, {.run = [=] {
            std::memset(to, 0, bytes);
            return absl::OkStatus();
          }});
  return absl::OkStatus();
}

absl::Status AdvisePreferred(void*, int64_t, Side) { return absl::OkStatus(); }
absl::Status AdviseAccessedByDevice(void* data, int64_t bytes) {
  auto it = --Get().regions.upper_bound(static_cast<uint8_t*>(data));
  const int64_t first = (static_cast<uint8_t*>(data) - it->first) / kPage;
  std::fill_n(it->second.mapped.begin() + first, (bytes + kPage - 1) / kPage, true);
  return absl::OkStatus();
}

absl::Status PrefetchAsync(void* data, int64_t bytes, Side side, Stream stream) {
  if (stream->capturing) {
    stream->capture_error = absl::InternalError("a prefetch can't be captured");
    return stream->capture_error;
  }
  Enqueue(stream, {.run = [=]() -> absl::Status {
            Runtime& r = Get();
            uint8_t* begin = static_cast<uint8_t*>(data);
            auto it = r.regions.upper_bound(begin);
            if (it == r.regions.begin()) return absl::InternalError("prefetch of no allocation");
            --it;
            Region& region = it->second;
            if (region.kind != Kind::kManaged || begin + bytes > it->first + region.bytes) {
              return absl::InternalError("prefetch of what is not managed memory");
            }
            const int64_t first = (begin - it->first) / kPage;
            const int64_t last = (begin + bytes - 1 - it->first) / kPage;
            for (int64_t page = first; page <= last; ++page) {
              const bool to_card = side == Side::kDevice;
              if (region.on_card[page] == to_card) continue;
              region.on_card[page] = to_card;
              (to_card ? r.counters.moved_in : r.counters.moved_out) += kPage;
              r.counters.managed_resident += to_card ? kPage : -kPage;
            }
            r.ProtectManaged(it->first, region);
            r.counters.managed_resident_peak =
                std::max(r.counters.managed_resident_peak, r.counters.managed_resident);
            return absl::OkStatus();
          }});
  return absl::OkStatus();
}

absl::StatusOr<Stream> CreateStream() {
  Stream stream = new StreamState;
  Get().streams.insert(stream);
  return stream;
}
void DestroyStream(Stream stream) {
  if (stream == nullptr) return;
  (void)Synchronize(stream);
  Get().streams.erase(stream);
  delete stream;
}
absl::Status Synchronize(Stream stream) {
  if (stream->capturing) return absl::InternalError("waiting for a stream that is being captured");
  if (absl::Status s = RunUntil([&] { return stream->queue.empty(); }); !s.ok()) return s;
  return stream->status;
}

// The card gets on with what it can before it is asked.
absl::StatusOr<bool> HasPassed(Event event) {
  Runtime& r = Get();
  const int64_t ticket = event->recorded;
  r.SetOpen(true);
  while (event->reached < ticket && RunOne()) {
  }
  r.SetOpen(false);
  for (const Stream stream : r.streams) {
    if (!stream->status.ok()) return stream->status;
  }
  return event->reached >= ticket;
}

absl::StatusOr<Event> CreateEvent() { return new EventState; }
absl::StatusOr<Event> CreateTimedEvent() { return CreateEvent(); }
void DestroyEvent(Event event) { delete event; }
absl::StatusOr<double> SecondsBetween(Event first, Event second) {
  return std::chrono::duration<double>(second->time - first->time).count();
}
absl::Status Record(Event event, Stream stream) {
  if (stream->capturing) {
    Enqueue(stream, {.run = [event] {
              event->reached = ++event->recorded;
              return absl::OkStatus();
            }});
    return absl::OkStatus();
  }
  const int64_t ticket = ++event->recorded;
  Enqueue(stream, {.run = [event, ticket] {
            event->reached = std::max(event->reached, ticket);
            event->time = std::chrono::steady_clock::now();
            return absl::OkStatus();
          }});
  return absl::OkStatus();
}
absl::Status Wait(Stream stream, Event event) {
  Enqueue(stream, {.run = nullptr, .waits_for = event, .ticket = event->recorded});
  return absl::OkStatus();
}
absl::Status SynchronizeEvent(Event event) {
  const int64_t ticket = event->recorded;
  return RunUntil([&] { return event->reached >= ticket; });
}

NamedRange::NamedRange(const char*) {}
NamedRange::~NamedRange() {}

absl::Status BeginCapture(Stream stream) {
  if (stream->capturing) return absl::InternalError("the stream is being captured already");
  stream->capturing = true;
  stream->capture_error = absl::OkStatus();
  stream->captured.clear();
  return absl::OkStatus();
}
absl::StatusOr<Graph> EndCapture(Stream stream) {
  if (!stream->capturing) return absl::InternalError("the stream is not being captured");
  stream->capturing = false;
  if (!stream->capture_error.ok()) return stream->capture_error;
  return new GraphState{std::move(stream->captured)};
}
absl::Status LaunchGraph(Graph graph, Stream stream) {
  ++Get().counters.graph_launches;
  for (const Task& task : graph->tasks) Enqueue(stream, task);
  return absl::OkStatus();
}
void DestroyGraph(Graph graph) { delete graph; }

namespace internal {

void LaunchBody(Launcher& launcher, const char* name, const LaunchShape& shape,
                std::function<void()> body) {
  if (!launcher.status().ok()) return;
  if (shape.blocks_x == 0 || shape.blocks_y == 0 || shape.blocks_z == 0) return;
  if (shape.blocks_x < 0 || shape.blocks_x > INT32_MAX || shape.blocks_y < 0 ||
      shape.blocks_y > 65535 || shape.blocks_z < 0 || shape.blocks_z > 65535) {
    launcher.Fail(
        absl::InternalError(absl::StrCat("starting kernel ", name, ": grid ", shape.blocks_x, "x",
                                         shape.blocks_y, "x", shape.blocks_z, " is too large")));
    return;
  }
  const simt::Grid grid = {name,           shape.blocks_x, shape.blocks_y,
                           shape.blocks_z, shape.threads,  shape.shared_bytes};
  Enqueue(launcher.stream(), {.run = [grid, body = std::move(body)]() -> absl::Status {
            ++Get().counters.launches;
            if (Get().card.launches_until_lost == 0) {
              return absl::UnavailableError("the GPU was lost");
            }
            if (Get().card.launches_until_lost > 0) --Get().card.launches_until_lost;
            const std::string failure = simt::RunGrid(grid, body);
            return failure.empty() ? absl::OkStatus() : absl::InternalError(failure);
          }});
}

}  // namespace internal
}  // namespace qlora::gpu

namespace qlora::simt {

void SetCard(const CardOptions& options) {
  gpu::Get().card = options;
  gpu::Get().random = options.seed;
}
void EnqueueForeign(gpu::Stream stream, std::function<bool()> advance) {
  gpu::Enqueue(stream, {.advance = std::move(advance)});
}
RuntimeCounters Counters() { return gpu::Get().counters; }
void ResetCounters() {
  RuntimeCounters& c = gpu::Get().counters;
  c = {.device_bytes = c.device_bytes,
       .managed_resident = c.managed_resident,
       .managed_resident_peak = c.managed_resident};
}

}  // namespace qlora::simt
