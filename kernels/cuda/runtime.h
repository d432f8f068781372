// The calls of a GPU runtime that the backend uses, and no others. Implemented twice: by
// nvidia/runtime.cc over CUDA, by tests/support/simt/runtime.cc on the host.
//
// Handles are plain pointers owned by whoever made them. Errors: NotFound where there is no usable
// GPU or driver, ResourceExhausted where memory ran out, Unavailable where the card was lost,
// Internal for everything else, always with the runtime's own words.

#ifndef QLORA_KERNELS_CUDA_RUNTIME_H_
#define QLORA_KERNELS_CUDA_RUNTIME_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qlora::gpu {

struct StreamState;
struct EventState;
struct GraphState;
using Stream = StreamState*;
using Event = EventState*;
using Graph = GraphState*;

struct Properties {
  std::string name;          // "NVIDIA H100 80GB HBM3"
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t memory_bytes = 0;  // of the card
  int64_t shared_bytes = 0;  // that one block may ask for
  int64_t l2_bytes = 0;
  bool concurrent_managed = false;  // host and card may touch managed memory at the same time
};

// The kernel launches of one stream, and the first error among them.
class Launcher {
 public:
  explicit Launcher(Stream stream) : stream_(stream) {}
  Stream stream() const { return stream_; }
  const absl::Status& status() const { return status_; }
  // Keeps `status` where it is an error and the first one.
  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }

 private:
  Stream stream_;
  absl::Status status_;
};

// ---- The card

// Makes card `ordinal` this thread's own. NotFound names what is missing: driver, card, or a
// driver that is new enough.
absl::StatusOr<Properties> OpenDevice(int ordinal);
absl::StatusOr<int> DeviceCount();
// Free and total bytes as the driver sees them now.
struct MemoryState {
  int64_t free = 0, total = 0;
};
absl::StatusOr<MemoryState> DeviceMemory();

// ---- Memory. Zero bytes give a null pointer.

absl::StatusOr<void*> AllocateDevice(int64_t bytes);
void FreeDevice(void* data);
// Readable from host and card, moved by Prefetch.
absl::StatusOr<void*> AllocateManaged(int64_t bytes);
void FreeManaged(void* data);
// Page-locked host memory, which copies to and from at full speed.
absl::StatusOr<void*> AllocatePinned(int64_t bytes);
void FreePinned(void* data);

// Between any two kinds of memory. Host memory must stay as it is until the stream has passed.
absl::Status CopyAsync(void* to, const void* from, int64_t bytes, Stream stream);
absl::Status FillZeroAsync(void* to, int64_t bytes, Stream stream);

enum class Side { kHost, kDevice };
// Where managed pages should live when nobody moves them, and who else may reach them there.
absl::Status AdvisePreferred(void* data, int64_t bytes, Side side);
absl::Status AdviseAccessedByDevice(void* data, int64_t bytes);
// Moves managed pages, in the stream's order.
absl::Status PrefetchAsync(void* data, int64_t bytes, Side side, Stream stream);

// ---- Order

absl::StatusOr<Stream> CreateStream();
void DestroyStream(Stream stream);
// Waits for all that was started on it, and reports what failed.
absl::Status Synchronize(Stream stream);
absl::StatusOr<Event> CreateEvent();
// One whose time counts, for SecondsBetween.
absl::StatusOr<Event> CreateTimedEvent();
void DestroyEvent(Event event);
absl::Status Record(Event event, Stream stream);
// What is started on `stream` from now on waits for the event's last Record.
absl::Status Wait(Stream stream, Event event);
absl::Status SynchronizeEvent(Event event);
// Between two timed events that the card has passed.
absl::StatusOr<double> SecondsBetween(Event first, Event second);

// Marks what is started meanwhile with a name in a profiler's timeline; nests.
class NamedRange {
 public:
  explicit NamedRange(const char* name);
  ~NamedRange();
  NamedRange(const NamedRange&) = delete;
};

// ---- Graphs: launches and copies recorded once, started together

absl::Status BeginCapture(Stream stream);
// Ends the capture also after an error inside it.
absl::StatusOr<Graph> EndCapture(Stream stream);
absl::Status LaunchGraph(Graph graph, Stream stream);
void DestroyGraph(Graph graph);

}  // namespace qlora::gpu

#endif  // QLORA_KERNELS_CUDA_RUNTIME_H_
