#include "kernels/cuda/runtime.h"

#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/launch.h"
#include "kernels/cuda/poll.h"

namespace qlora::gpu {
namespace {

cudaStream_t Native(Stream s) { return reinterpret_cast<cudaStream_t>(s); }
cudaEvent_t Native(Event e) { return reinterpret_cast<cudaEvent_t>(e); }
cudaGraphExec_t Native(Graph g) { return reinterpret_cast<cudaGraphExec_t>(g); }

absl::StatusCode CodeOf(cudaError_t error) {
  switch (error) {
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorSystemDriverMismatch:
      return absl::StatusCode::kNotFound;
    case cudaErrorMemoryAllocation:
      return absl::StatusCode::kResourceExhausted;
    // The card fell off the bus, or its memory failed.
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorUnknown:
      return absl::StatusCode::kUnavailable;
    default:
      return absl::StatusCode::kInternal;
  }
}

absl::Status StatusOf(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // a failed call must not be reported again by the next launch
  const absl::StatusCode code = CodeOf(error);
  return absl::Status(
      code, absl::StrCat(what, ": ", cudaGetErrorName(error), " (", cudaGetErrorString(error), ")",
                         code == absl::StatusCode::kUnavailable
                             ? "; the GPU was lost. A training run started again by the same "
                               "command goes on from its newest checkpoint"
                             : ""));
}

// "13.0" of CUDA's 13000.
std::string VersionText(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

#if CUDART_VERSION >= 13000
cudaMemLocation LocationOf(Side side) {
  cudaMemLocation location = {};
  location.type = side == Side::kHost ? cudaMemLocationTypeHost : cudaMemLocationTypeDevice;
  if (side == Side::kDevice) cudaGetDevice(&location.id);
  return location;
}
#else
int LocationOf(Side side) {
  int device = cudaCpuDeviceId;
  if (side == Side::kDevice) cudaGetDevice(&device);
  return device;
}
#endif

}  // namespace

absl::StatusOr<int> DeviceCount() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    cudaGetLastError();
    return absl::NotFoundError(absl::StrCat("no NVIDIA driver is loaded; CUDA ",
                                            VersionText(CUDART_VERSION), " needs one (version ",
                                            CUDART_VERSION >= 13000 ? "580" : "550", " or later)"));
  }
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    return absl::NotFoundError(absl::StrCat("the NVIDIA driver is too old: it serves CUDA ",
                                            VersionText(driver), ", this program needs ",
                                            VersionText(CUDART_VERSION), " (driver ",
                                            CUDART_VERSION >= 13000 ? "580" : "550", " or later)"));
  }
  if (error == cudaErrorNoDevice)
    count = 0;
  else if (error != cudaSuccess)
    return StatusOf(error, "counting GPUs");
  if (count == 0) return absl::NotFoundError("the NVIDIA driver sees no GPU");
  return count;
}

absl::StatusOr<Properties> OpenDevice(int ordinal) {
  absl::StatusOr<int> count = DeviceCount();
  if (!count.ok()) return count.status();
  if (ordinal < 0 || ordinal >= *count) {
    return absl::NotFoundError(absl::StrCat("there is no GPU ", ordinal, "; this machine has ",
                                            *count, " (0 to ", *count - 1, ")"));
  }
  if (auto s = StatusOf(cudaSetDevice(ordinal), "opening the GPU"); !s.ok()) return s;
  cudaDeviceProp native;
  if (auto s =
          StatusOf(cudaGetDeviceProperties(&native, ordinal), "asking for the GPU's properties");
      !s.ok()) {
    return s;
  }
  Properties p;
  p.name = native.name;
  p.major = native.major;
  p.minor = native.minor;
  p.multiprocessors = native.multiProcessorCount;
  p.memory_bytes = int64_t(native.totalGlobalMem);
  p.shared_bytes = int64_t(native.sharedMemPerBlockOptin);
  p.l2_bytes = native.l2CacheSize;
  p.concurrent_managed = native.concurrentManagedAccess != 0;
  return p;
}

absl::StatusOr<MemoryState> DeviceMemory() {
  size_t free = 0, total = 0;
  if (auto s = StatusOf(cudaMemGetInfo(&free, &total), "asking for free GPU memory"); !s.ok()) {
    return s;
  }
  return MemoryState{int64_t(free), int64_t(total)};
}

absl::StatusOr<void*> AllocateDevice(int64_t bytes) {
  void* data = nullptr;
  if (bytes == 0) return data;
  if (auto s = StatusOf(cudaMalloc(&data, bytes), "cudaMalloc"); !s.ok()) return s;
  return data;
}
void FreeDevice(void* data) { cudaFree(data); }

absl::StatusOr<void*> AllocateManaged(int64_t bytes) {
  void* data = nullptr;
  if (bytes == 0) return data;
  if (auto s = StatusOf(cudaMallocManaged(&data, bytes), "cudaMallocManaged"); !s.ok()) return s;
  return data;
}
void FreeManaged(void* data) { cudaFree(data); }

absl::StatusOr<void*> AllocatePinned(int64_t bytes) {
  void* data = nullptr;
  if (bytes == 0) return data;
  if (auto s = StatusOf(cudaMallocHost(&data, bytes), "cudaMallocHost"); !s.ok()) return s;
  return data;
}
void FreePinned(void* data) { cudaFreeHost(data); }

absl::Status CopyAsync(void* to, const void* from, int64_t bytes, Stream stream) {
  if (bytes == 0) return absl::OkStatus();
  return StatusOf(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, Native(stream)),
                  "cudaMemcpyAsync");
}
absl::Status FillZeroAsync(void* to, int64_t bytes, Stream stream) {
  if (bytes == 0) return absl::OkStatus();
  return StatusOf(cudaMemsetAsync(to, 0, bytes, Native(stream)), "cudaMemsetAsync");
}

absl::Status AdvisePreferred(void* data, int64_t bytes, Side side) {
  return StatusOf(cudaMemAdvise(data, bytes, cudaMemAdviseSetPreferredLocation, LocationOf(side)),
                  "cudaMemAdvise");
}
absl::Status AdviseAccessedByDevice(void* data, int64_t bytes) {
  return StatusOf(cudaMemAdvise(data, bytes, cudaMemAdviseSetAccessedBy, LocationOf(Side::kDevice)),
                  "cudaMemAdvise");
}
absl::Status PrefetchAsync(void* data, int64_t bytes, Side side, Stream stream) {
#if CUDART_VERSION >= 13000
  return StatusOf(cudaMemPrefetchAsync(data, bytes, LocationOf(side), 0, Native(stream)),
                  "cudaMemPrefetchAsync");
#else
  return StatusOf(cudaMemPrefetchAsync(data, bytes, LocationOf(side), Native(stream)),
                  "cudaMemPrefetchAsync");
#endif
}

absl::StatusOr<Stream> CreateStream() {
  cudaStream_t stream;
  if (auto s =
          StatusOf(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
      !s.ok()) {
    return s;
  }
  return reinterpret_cast<Stream>(stream);
}
void DestroyStream(Stream stream) { cudaStreamDestroy(Native(stream)); }
absl::Status Synchronize(Stream stream) {
  return StatusOf(cudaStreamSynchronize(Native(stream)), "waiting for the GPU");
}

namespace {
absl::StatusOr<Event> CreateEventWith(unsigned flags) {
  cudaEvent_t event;
  if (auto s = StatusOf(cudaEventCreateWithFlags(&event, flags), "cudaEventCreate"); !s.ok()) {
    return s;
  }
  return reinterpret_cast<Event>(event);
}
}  // namespace
absl::StatusOr<Event> CreateEvent() { return CreateEventWith(cudaEventDisableTiming); }
absl::StatusOr<Event> CreateTimedEvent() { return CreateEventWith(cudaEventDefault); }
void DestroyEvent(Event event) { cudaEventDestroy(Native(event)); }
absl::Status Record(Event event, Stream stream) {
  return StatusOf(cudaEventRecord(Native(event), Native(stream)), "cudaEventRecord");
}
absl::Status Wait(Stream stream, Event event) {
  return StatusOf(cudaStreamWaitEvent(Native(stream), Native(event), 0), "cudaStreamWaitEvent");
}
absl::Status SynchronizeEvent(Event event) {
  return StatusOf(cudaEventSynchronize(Native(event)), "waiting for the GPU");
}
absl::StatusOr<bool> HasPassed(Event event) {
  const cudaError_t state = cudaEventQuery(Native(event));
  if (state == cudaErrorNotReady) return false;
  if (auto s = StatusOf(state, "asking the GPU"); !s.ok()) return s;
  return true;
}
absl::StatusOr<double> SecondsBetween(Event first, Event second) {
  float milliseconds = 0;
  if (auto s = StatusOf(cudaEventElapsedTime(&milliseconds, Native(first), Native(second)),
                        "cudaEventElapsedTime");
      !s.ok()) {
    return s;
  }
  return milliseconds * 1e-3;
}

NamedRange::NamedRange(const char* name) { nvtxRangePushA(name); }
NamedRange::~NamedRange() { nvtxRangePop(); }

absl::Status BeginCapture(Stream stream) {
  return StatusOf(cudaStreamBeginCapture(Native(stream), cudaStreamCaptureModeThreadLocal),
                  "cudaStreamBeginCapture");
}
absl::StatusOr<Graph> EndCapture(Stream stream) {
  cudaGraph_t graph = nullptr;
  if (auto s = StatusOf(cudaStreamEndCapture(Native(stream), &graph), "cudaStreamEndCapture");
      !s.ok()) {
    return s;
  }
  cudaGraphExec_t exec = nullptr;
  const absl::Status s =
      StatusOf(cudaGraphInstantiateWithFlags(&exec, graph, 0), "cudaGraphInstantiate");
  cudaGraphDestroy(graph);
  if (!s.ok()) return s;
  return reinterpret_cast<Graph>(exec);
}
absl::Status LaunchGraph(Graph graph, Stream stream) {
  return StatusOf(cudaGraphLaunch(Native(graph), Native(stream)), "cudaGraphLaunch");
}
void DestroyGraph(Graph graph) { cudaGraphExecDestroy(Native(graph)); }

namespace internal {

void LaunchRaw(Launcher& launcher, const char* name, const void* kernel, const LaunchShape& shape,
               void** arguments) {
  if (!launcher.status().ok()) return;
  if (shape.blocks_x == 0 || shape.blocks_y == 0 || shape.blocks_z == 0) return;
  const auto note = [&](cudaError_t error) {
    if (error == cudaSuccess) return true;
    launcher.Fail(
        StatusOf(error, absl::StrCat("starting kernel ", name, " (grid ", shape.blocks_x, "x",
                                     shape.blocks_y, "x", shape.blocks_z, ", ", shape.threads,
                                     " threads, ", shape.shared_bytes, " bytes of shared memory)")
                            .c_str()));
    return false;
  };
  if (shape.blocks_x > INT32_MAX || shape.blocks_y > 65535 || shape.blocks_z > 65535) {
    note(cudaErrorInvalidConfiguration);
    return;
  }
  // Above 48 KiB a kernel must be told that it may.
  if (shape.shared_bytes > 48 * 1024 &&
      !note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(shape.shared_bytes)))) {
    return;
  }
  note(cudaLaunchKernel(
      kernel, dim3(unsigned(shape.blocks_x), unsigned(shape.blocks_y), unsigned(shape.blocks_z)),
      dim3(unsigned(shape.threads)), arguments, size_t(shape.shared_bytes),
      Native(launcher.stream())));
}

}  // namespace internal
}  // namespace qlora::gpu
