// Runs ops from a host image on any device and holds what they leave against an expectation, byte
// by byte.
//
// Nothing here knows a backend: memory goes through Device::Allocate, CopyIn and CopyOut, ops
// through Prepare, Run and Synchronize, 4-bit bases through Pack, so the same cases test every
// device there is.

#ifndef QLORA_TESTS_SUPPORT_OP_HARNESS_H_
#define QLORA_TESTS_SUPPORT_OP_HARNESS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "tests/support/expectation.h"
#include "tests/support/operand_memory.h"

namespace qlora::kernels::optest {

// A list of ops and the operands they share, moved to a device. Workspaces are added here, between
// guards and full of poison; they are no part of the host image, for their sizes are the device's
// own.
class DeviceRun {
 public:
  // `ops` hold views of `memory`, which must outlive the run. Uploads the image.
  static absl::StatusOr<std::unique_ptr<DeviceRun>> Create(Device& device,
                                                           const OperandMemory& memory,
                                                           const std::vector<Op>& ops);

  // Brings the host image to the device again.
  absl::Status Upload();
  // Runs the prepared piece once and waits. Internal where a workspace's guards or a packed base
  // were written to.
  absl::Status Run();
  // The image as the ops left it.
  absl::StatusOr<std::vector<uint8_t>> Download();

  // The ops with addresses of the device.
  const std::vector<Op>& ops() const { return ops_; }
  Piece& piece() { return *piece_; }

 private:
  explicit DeviceRun(Device& device, const OperandMemory& memory)
      : device_(device), memory_(memory) {}
  absl::Status Relocate(Op& op) const;
  absl::Status AddWorkspaces();
  absl::Status PackBases();

  Device& device_;
  const OperandMemory& memory_;
  std::vector<Op> ops_;
  Buffer image_, workspaces_, packed_;
  std::vector<uint8_t> workspace_poison_, packed_bytes_;
  std::vector<bool> workspace_guard_;  // byte of workspaces_ that no op may write
  std::unique_ptr<Piece> piece_;
};

// Empty where `result` is what `expectation` says and every other byte of the image is unchanged;
// otherwise the first difference with its operand and coordinates, and how many there are.
std::string Difference(const OperandMemory& memory, const Op& op, const Expectation& expectation,
                       const std::vector<uint8_t>& result);

// The op with its views moved from the host image into a downloaded one.
Op ViewsInto(const OperandMemory& memory, Op op, const std::vector<uint8_t>& result);

// Empty where two images are equal; otherwise operand and coordinates of the first byte that
// differs.
std::string FirstByteDifference(const OperandMemory& memory, const Op& op,
                                const std::vector<uint8_t>& a, const std::vector<uint8_t>& b);

}  // namespace qlora::kernels::optest

#endif  // QLORA_TESTS_SUPPORT_OP_HARNESS_H_
