// A device for tests of loading: quantizes by the reference, packs codes with a mask of its own,
// and, where it is not the host, refuses addresses outside its memory.
#ifndef QLORA_TESTS_ENGINE_MODEL_REFERENCE_DEVICE_H_
#define QLORA_TESTS_ENGINE_MODEL_REFERENCE_DEVICE_H_

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/element_convert.h"
#include "kernels/device.h"
#include "quant/reference_quantizer.h"

namespace qlora::tests {

class ReferenceDevice : public kernels::Device {
 public:
  // `mask` is what packing does to every byte of codes.
  explicit ReferenceDevice(bool is_host = true, uint8_t mask = 0) : mask_(mask) {
    info_.name = "reference";
    info_.is_host = is_host;
  }

  const kernels::DeviceInfo& info() const override { return info_; }
  int64_t WorkspaceBytes(const kernels::Op&) const override { return 0; }
  int64_t PrivateBytes() const override { return 0; }
  absl::StatusOr<kernels::Buffer> Allocate(int64_t bytes) override {
    absl::StatusOr<kernels::Buffer> buffer = kernels::Buffer::CreateHost(bytes);
    if (buffer.ok()) memory_.emplace_back(static_cast<const char*>(buffer->data()), bytes);
    return buffer;
  }
  absl::StatusOr<std::unique_ptr<kernels::PagedMemory>> AllocatePaged(
      const kernels::PagedShape&) override {
    return absl::UnimplementedError("loading pages nothing");
  }
  absl::StatusOr<std::unique_ptr<kernels::Piece>> Prepare(std::vector<kernels::Op> ops) override {
    return std::make_unique<ReferencePiece>(this, std::move(ops));
  }
  absl::Status Stage(void* device, const void* host, int64_t bytes) override {
    return CopyIn(device, host, bytes);
  }
  absl::Status CopyIn(void* device, const void* host, int64_t bytes) override {
    if (!Owns(device, bytes)) return absl::InternalError("CopyIn outside the device's memory");
    if (bytes > 0) std::memcpy(device, host, bytes);
    return absl::OkStatus();
  }
  absl::Status CopyOut(void* host, const void* device, int64_t bytes) override {
    if (!Owns(device, bytes)) return absl::InternalError("CopyOut outside the device's memory");
    if (bytes > 0) std::memcpy(host, device, bytes);
    return absl::OkStatus();
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }

  // Ops run so far, by name.
  int runs(const std::string& op) const { return runs_.contains(op) ? runs_.at(op) : 0; }

 private:
  class ReferencePiece : public kernels::Piece {
   public:
    ReferencePiece(ReferenceDevice* device, std::vector<kernels::Op> ops)
        : device_(*device), ops_(std::move(ops)) {}
    absl::Status Run() override {
      for (kernels::Op& op : ops_) {
        if (absl::Status s = device_.RunOp(op); !s.ok()) return s;
      }
      return absl::OkStatus();
    }

   private:
    ReferenceDevice& device_;
    std::vector<kernels::Op> ops_;
  };

  bool Owns(const void* at, int64_t bytes) const {
    if (info_.is_host || bytes == 0) return true;
    const char* begin = static_cast<const char*>(at);
    for (const auto& [memory, size] : memory_) {
      if (begin >= memory && begin + bytes <= memory + size) return true;
    }
    return false;
  }

  absl::Status RunOp(kernels::Op& op) {
    absl::Status status;
    kernels::VisitTensors(op, [&](const char* name, auto& view) {
      if (view.data == nullptr || view.Extent() == 0) return;
      if (!Owns(view.data, view.Extent())) {
        status = absl::InternalError(absl::StrCat(name, " lies outside the device's memory"));
      }
      if (reinterpret_cast<uintptr_t>(view.data) % kernels::SizeOf(view.dtype) != 0) {
        status = absl::InternalError(absl::StrCat(name, " is not aligned"));
      }
    });
    if (!status.ok()) return status;
    ++runs_[kernels::NameOf(op)];
    if (auto* quantize = std::get_if<kernels::Quantize>(&op)) return RunQuantize(*quantize);
    if (auto* pack = std::get_if<kernels::Pack>(&op)) return Move(pack->from, pack->to);
    if (auto* unpack = std::get_if<kernels::Unpack>(&op)) return Move(unpack->from, unpack->to);
    return absl::UnimplementedError(kernels::NameOf(op));
  }

  absl::Status RunQuantize(const kernels::Quantize& op) {
    std::vector<float> w(op.w.Count());
    engine::ConvertElements(op.w.dtype, static_cast<const uint8_t*>(op.w.data), op.w.Count(),
                            kernels::DType::kF32, w.data());
    quant::QuantizedView view;
    view.codes = static_cast<uint8_t*>(op.out.codes.data);
    if (op.spec.double_quant) {
      view.absmax_u8 = static_cast<uint8_t*>(op.out.absmax.data);
      view.nested_absmax = static_cast<float*>(op.out.nested_absmax.data);
      view.nested_offset = static_cast<float*>(op.out.offset.data);
    } else {
      view.absmax_f32 = static_cast<float*>(op.out.absmax.data);
    }
    const absl::Status status = quant::QuantizeReference(w.data(), op.w.Count(), op.spec, view);
    op.nonfinite.Scalar<int32_t>() = status.ok() ? 0 : 1;
    return absl::OkStatus();
  }

  absl::Status Move(const kernels::QuantizedTensor& from, const kernels::QuantizedOutput& to) {
    const auto copy = [](const kernels::ConstTensor& a, const kernels::Tensor& b) {
      if (a.Extent() != b.Extent()) return absl::InternalError("Pack or Unpack: sizes differ");
      if (a.Extent() > 0) std::memcpy(b.data, a.data, a.Extent());
      return absl::OkStatus();
    };
    absl::Status status = copy(from.codes, to.codes);
    status.Update(copy(from.absmax, to.absmax));
    if (from.spec.double_quant) {
      status.Update(copy(from.nested_absmax, to.nested_absmax));
      status.Update(copy(from.offset, to.offset));
      if (!from.map) status.Update(absl::InternalError("no map"));
    }
    uint8_t* codes = static_cast<uint8_t*>(to.codes.data);
    for (int64_t i = 0; i < to.codes.Count(); ++i) codes[i] ^= mask_;
    return status;
  }

  kernels::DeviceInfo info_;
  const uint8_t mask_;
  std::vector<std::pair<const char*, int64_t>> memory_;
  std::map<std::string, int> runs_;
};

}  // namespace qlora::tests

#endif  // QLORA_TESTS_ENGINE_MODEL_REFERENCE_DEVICE_H_
