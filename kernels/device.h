// Device: where ops run. One implementation a backend; the rest of the engine sees only this.
//
// A device runs *pieces*: lists of ops whose addresses are final. A piece is prepared once and run
// many times; between runs only the contents of memory change. Runs of one device are ordered among
// themselves; host code sees their results, and may touch their memory, only after Synchronize().

#ifndef QLORA_KERNELS_DEVICE_H_
#define QLORA_KERNELS_DEVICE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/buffer.h"
#include "kernels/op_list.h"
#include "kernels/paged_memory.h"

namespace qlora::kernels {

struct DeviceInfo {
  std::string name;          // e.g. "cpu (avx512, 2 threads)"
  int64_t memory_bytes = 0;  // what a run may use at most
  bool is_host = false;      // memory can be read by the host after Synchronize()
  // Whether the kernels have passed their tests on hardware of this kind. Where they have not, a
  // device is used only if the job names it.
  bool is_qualified = true;
};

class Piece {
 public:
  virtual ~Piece() = default;
  // Starts the ops in order. Errors are those of the device, never of the data.
  virtual absl::Status Run() = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceInfo& info() const = 0;
  // Scratch bytes that `op` needs behind its `workspace` view; a function of shapes and types
  // alone.
  virtual int64_t WorkspaceBytes(const Op& op) const = 0;
  // The variants in which the device can run a linear op, by shapes and types; the one that its
  // table for this device and shape names comes first. One for every other op.
  virtual std::vector<LinearVariant> Variants(const Op& op) const;
  // Columns behind its input that a linear op in its variant can use as `tail`, by shapes and
  // types; 0 for every other op.
  virtual int64_t TailColumns(const Op& op) const;
  // Whether the device can run the op as it is; Unimplemented with the reason where not, NotFound
  // where what it needs for that is not on this machine. Only ops that ask for a library are ever
  // refused; their shapes must have been given to WorkspaceBytes, which is 0 for what is refused.
  virtual absl::Status Accept(const Op& op) const;
  // The largest rank of adapters whose first products (RmsNormForward::products) a norm makes at
  // less cost than the linear ops that read its result; 0: none, and for every other op.
  virtual int64_t FirstProductRank(const Op& op) const;
  // Memory that the device itself keeps for all ops together (per-thread panels), beside buffers
  // and workspaces.
  virtual int64_t PrivateBytes() const = 0;

  // Zeroed memory. ResourceExhausted where there is none.
  virtual absl::StatusOr<Buffer> Allocate(int64_t bytes) = 0;
  // Memory of which only a part is on the device at a time; for the device's pieces, which it must
  // outlive. ResourceExhausted where the device, the host or, for a host's device, `shape.folder`
  // has no room.
  virtual absl::StatusOr<std::unique_ptr<PagedMemory>> AllocatePaged(const PagedShape& shape) = 0;
  virtual absl::StatusOr<std::unique_ptr<Piece>> Prepare(std::vector<Op> ops) = 0;
  // Takes `bytes` of host memory before it returns and puts them at `device` behind everything that
  // was started before; does not wait. For what changes from step to step: some megabytes at most.
  virtual absl::Status Stage(void* device, const void* host, int64_t bytes) = 0;
  // These two want everything that touches the device's bytes to be over.
  virtual absl::Status CopyIn(void* device, const void* host, int64_t bytes) = 0;
  virtual absl::Status CopyOut(void* host, const void* device, int64_t bytes) = 0;
  virtual absl::Status Synchronize() = 0;
  // Seconds that the device has spent in pieces since it was opened, up to the last Synchronize();
  // 0 where it does not count them.
  virtual double BusySeconds() const { return 0; }

  // Prepares, runs and waits: for loading and tests, not for the step.
  absl::Status RunOnce(std::vector<Op> ops);
};

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_DEVICE_H_
