#include "engine/step/kernel_trial.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string_view>
#include <utility>

#include "quant/float_formats.h"

namespace qlora::engine {
namespace {

using kernels::DType;

constexpr int kTries = 5;
// Ops of one timed piece: what starting it costs disappears.
constexpr int kRepeats = 8;
// Of each operand, in bytes.
constexpr int64_t kAlignment = 256;
// Numbers are repeated after so many: that they are many is all that counts.
constexpr int64_t kPatternElements = int64_t{1} << 16;

// Codes are any byte, scales positive and small, matrices symmetric around 0.
std::vector<uint8_t> Pattern(DType dtype) {
  std::vector<uint8_t> bytes(kPatternElements * kernels::SizeOf(dtype));
  uint32_t random = 12345;
  for (int64_t i = 0; i < kPatternElements; ++i) {
    random = random * 1664525u + 1013904223u;
    const float unit = float(random >> 8) / float(1 << 24);
    uint8_t* const at = bytes.data() + i * kernels::SizeOf(dtype);
    if (dtype == DType::kU8) {
      *at = uint8_t(random >> 24);
    } else if (dtype == DType::kF32) {
      const float value = 0.01f + 0.01f * unit;
      std::memcpy(at, &value, 4);
    } else if (dtype == DType::kBf16) {
      const uint16_t value = quant::Bf16FromF32(unit - 0.5f);
      std::memcpy(at, &value, 2);
    }
  }
  return bytes;
}

const kernels::ConstTensor& InputOf(const kernels::LinearForward& op) { return op.x; }
const kernels::ConstTensor& InputOf(const kernels::LinearBackwardInput& op) { return op.dy; }

// Rows with what lies behind them.
int64_t BytesOf(const kernels::ConstTensor& view) {
  return view.rows * view.pitch * kernels::SizeOf(view.dtype);
}

kernels::Tensor TailBehind(const kernels::ConstTensor& x, int64_t columns) {
  if (columns == 0) return {};
  uint8_t* const row = static_cast<uint8_t*>(const_cast<void*>(x.data));
  return {row + x.cols * kernels::SizeOf(x.dtype), x.dtype, x.rows, columns, x.pitch};
}

// The most columns behind its input that any variant of the op wants.
int64_t RoomOf(kernels::Op op, const kernels::Device& device) {
  int64_t most = 0;
  for (const kernels::LinearVariant variant : device.Variants(op)) {
    std::visit(
        [&](auto& o) {
          if constexpr (requires { o.tail; }) o.variant = variant;
        },
        op);
    most = std::max(most, device.TailColumns(op));
  }
  return most;
}

}  // namespace

absl::StatusOr<std::unique_ptr<KernelTrial>> KernelTrial::Create(const kernels::Op& op,
                                                                 kernels::LinearVariant variant,
                                                                 kernels::Device* device) {
  std::unique_ptr<KernelTrial> trial(new KernelTrial(device));
  trial->op_ = op;
  trial->room_ = RoomOf(op, *device);
  std::visit(
      [&](auto& o) {
        if constexpr (requires { o.variant; }) {
          o.variant = variant;
          const int64_t tail = device->TailColumns(o);
          o.tail = {nullptr, DType::kBf16, 0, tail, tail};
          o.workspace = {};
          const int64_t bytes = device->WorkspaceBytes(o);
          o.workspace = {nullptr, DType::kU8, 1, bytes, bytes};
        }
      },
      trial->op_);
  if (absl::Status s = trial->Allocate(); !s.ok()) return s;
  return trial;
}

// Whatever lay between the rows is left out, but for the room behind the input, which is the same
// for every variant; an operand is there where it has columns.
absl::Status KernelTrial::Allocate() {
  int64_t bytes = 0;
  kernels::VisitTensors(op_, [&](const char* name, auto& view) {
    const bool is_input = std::string_view(name) == "x" || std::string_view(name) == "dy";
    view.pitch = is_input ? kernels::PitchWithTail(view.cols, room_) : view.cols;
    bytes += kernels::AlignUp(BytesOf(view), kAlignment);
  });
  absl::StatusOr<kernels::Buffer> memory = device_.Allocate(bytes);
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  uint8_t* next = static_cast<uint8_t*>(memory_.data());
  absl::Status status;
  kernels::VisitTensors(op_, [&](const char* name, auto& view) {
    view.data = view.Extent() > 0 ? next : nullptr;
    next += kernels::AlignUp(BytesOf(view), kAlignment);
    if (std::string_view(name) == "y" || std::string_view(name) == "dx") {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(view)>, kernels::Tensor>) {
        result_ = view;
      }
    }
    if (view.data != nullptr && std::string_view(name) != "workspace") {
      status.Update(Fill(name, view));
    }
  });
  std::visit(
      [](auto& o) {
        if constexpr (requires { o.tail; }) o.tail = TailBehind(InputOf(o), o.tail.cols);
      },
      op_);
  return status;
}

absl::Status KernelTrial::Fill(const char* name, const kernels::ConstTensor& view) {
  uint8_t* const to = static_cast<uint8_t*>(const_cast<void*>(view.data));
  if (view.dtype == DType::kI32) {
    // Counters may be anything; live rows are all of them.
    std::vector<int32_t> values(view.Count(), 0);
    if (std::string_view(name) == "live_rows") {
      std::visit(
          [&](const auto& o) {
            if constexpr (requires { o.x, o.live_rows; }) values[0] = int32_t(o.x.rows);
            if constexpr (requires { o.dy, o.live_rows; }) values[0] = int32_t(o.dy.rows);
          },
          op_);
    }
    return device_.CopyIn(to, values.data(), view.Extent());
  }
  const std::vector<uint8_t> pattern = Pattern(view.dtype);
  for (int64_t done = 0; done < view.Extent(); done += int64_t(pattern.size())) {
    const int64_t count = std::min<int64_t>(view.Extent() - done, int64_t(pattern.size()));
    if (absl::Status s = device_.CopyIn(to + done, pattern.data(), count); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::StatusOr<double> KernelTrial::Seconds() {
  auto piece = device_.Prepare(std::vector<kernels::Op>(kRepeats, op_));
  if (!piece.ok()) return piece.status();
  double best = 1e30;
  for (int i = 0; i < kTries; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    if (absl::Status s = (*piece)->Run(); !s.ok()) return s;
    if (absl::Status s = device_.Synchronize(); !s.ok()) return s;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::min(best, seconds.count() / kRepeats);
  }
  return best;
}

absl::StatusOr<std::vector<float>> KernelTrial::Result() {
  if (absl::Status s = device_.RunOnce({op_}); !s.ok()) return s;
  std::vector<uint8_t> bytes(result_.Extent());
  if (absl::Status s = device_.CopyOut(bytes.data(), result_.data, result_.Extent()); !s.ok()) {
    return s;
  }
  std::vector<float> values(result_.Count());
  for (size_t i = 0; i < values.size(); ++i) {
    if (result_.dtype == DType::kF32) {
      std::memcpy(&values[i], bytes.data() + 4 * i, 4);
    } else {
      uint16_t bits;
      std::memcpy(&bits, bytes.data() + 2 * i, 2);
      values[i] = quant::F32FromBf16(bits);
    }
  }
  return values;
}

}  // namespace qlora::engine
