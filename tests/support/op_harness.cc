#include "tests/support/op_harness.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace qlora::kernels::optest {
namespace {

constexpr int64_t kGuard = OperandMemory::kGuardBytes;

constexpr int64_t RoundUp(int64_t n) { return (n + kGuard - 1) / kGuard * kGuard; }

// Calls f(base) for the linear base of an op, where it has one.
template <class F>
void VisitBase(Op& op, F&& f) {
  std::visit(
      [&](auto& o) {
        if constexpr (requires { o.base; }) f(o.base);
        if constexpr (requires { o.head; }) f(o.head);
      },
      op);
}

// "dx (row 3, column 5)" for a byte of the image, or which operand's guard or gap it lies in.
std::string Describe(const OperandMemory& memory, const Op& op, int64_t offset) {
  std::string nearest = "no operand";
  int64_t distance = INT64_MAX;
  VisitTensors(op, [&](const char* name, const auto& t) {
    if (!t) return;
    const int64_t begin = memory.OffsetOf(t.data);
    if (begin < 0) return;
    const int64_t relative = offset - begin;
    const int64_t away = relative < 0            ? -relative
                         : relative < t.Extent() ? 0
                                                 : relative - t.Extent() + 1;
    if (away >= distance) return;
    distance = away;
    const int64_t size = SizeOf(t.dtype);
    if (relative < 0) {
      nearest = absl::StrCat(name, ", ", -relative, " bytes before its first element");
    } else if (relative >= t.Extent()) {
      nearest = absl::StrCat(name, ", ", away, " bytes behind its last element");
    } else {
      const int64_t row = relative / size / t.pitch, column = relative / size % t.pitch;
      nearest = absl::StrCat(name, " (row ", row, ", column ", column,
                             column < t.cols ? ")" : "; in the gap between rows)");
    }
  });
  return nearest;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceRun>> DeviceRun::Create(Device& device,
                                                             const OperandMemory& memory,
                                                             const std::vector<Op>& ops) {
  std::unique_ptr<DeviceRun> run(new DeviceRun(device, memory));
  run->ops_ = ops;
  absl::StatusOr<Buffer> image = device.Allocate(memory.image_bytes());
  if (!image.ok()) return image.status();
  run->image_ = *std::move(image);
  if (absl::Status s = run->Upload(); !s.ok()) return s;
  for (Op& op : run->ops_) {
    if (absl::Status s = run->Relocate(op); !s.ok()) return s;
  }
  if (absl::Status s = run->PackBases(); !s.ok()) return s;
  if (absl::Status s = run->AddWorkspaces(); !s.ok()) return s;
  absl::StatusOr<std::unique_ptr<Piece>> piece = device.Prepare(run->ops_);
  if (!piece.ok()) return piece.status();
  run->piece_ = *std::move(piece);
  return run;
}

absl::Status DeviceRun::Relocate(Op& op) const {
  absl::Status status;
  VisitTensors(op, [&](const char* name, auto& t) {
    if (!t) return;
    const int64_t offset = memory_.OffsetOf(t.data);
    if (offset < 0) {
      status = absl::InternalError(absl::StrCat(name, " is no view of the case's memory"));
      return;
    }
    t.data = static_cast<uint8_t*>(image_.data()) + offset;
  });
  return status;
}

absl::Status DeviceRun::Upload() {
  const std::vector<uint8_t> image = memory_.Image();
  return device_.CopyIn(image_.data(), image.data(), int64_t(image.size()));
}

absl::Status DeviceRun::AddWorkspaces() {
  std::vector<int64_t> sizes;
  int64_t total = 0;
  for (const Op& op : ops_) {
    sizes.push_back(device_.WorkspaceBytes(op));
    if (sizes.back() < 0) return absl::InternalError("negative workspace size");
    total += RoundUp(sizes.back()) + 2 * kGuard;
  }
  absl::StatusOr<Buffer> buffer = device_.Allocate(total);
  if (!buffer.ok()) return buffer.status();
  workspaces_ = *std::move(buffer);
  CountedRandom random(0x5eed);
  workspace_poison_.resize(total);
  FillPoison(random, DType::kF32, workspace_poison_.data(), total);
  workspace_guard_.assign(total, true);
  int64_t offset = 0;
  for (size_t i = 0; i < ops_.size(); ++i) {
    const int64_t begin = offset + kGuard;
    offset += RoundUp(sizes[i]) + 2 * kGuard;
    if (sizes[i] == 0) continue;
    bool has_field = false;
    VisitTensors(ops_[i], [&](const char* name, auto& t) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(t)>, Tensor>) {
        if (absl::string_view(name) != "workspace") return;
        t = Tensor{static_cast<uint8_t*>(workspaces_.data()) + begin, DType::kU8, 1, sizes[i],
                   sizes[i]};
        has_field = true;
      }
    });
    if (!has_field) {
      return absl::InternalError(absl::StrCat(NameOf(ops_[i]), " asks for ", sizes[i],
                                              " bytes of workspace and has no field for it"));
    }
    std::fill_n(workspace_guard_.begin() + begin, sizes[i], false);
  }
  return absl::OkStatus();
}

absl::Status DeviceRun::PackBases() {
  int64_t total = 0;
  const auto parts = [](QuantizedTensor& q) {
    return std::vector<ConstTensor*>{&q.codes, &q.absmax, &q.nested_absmax, &q.offset};
  };
  const auto is_packed = [](const LinearBase& base) {
    return base.kind == LinearBase::Kind::kQuantized && base.quantized.codes.Count() > 0;
  };
  for (Op& op : ops_) {
    VisitBase(op, [&](LinearBase& base) {
      if (!is_packed(base)) return;
      for (const ConstTensor* part : parts(base.quantized)) total += RoundUp(part->Extent());
    });
  }
  if (total == 0) return absl::OkStatus();
  absl::StatusOr<Buffer> buffer = device_.Allocate(total);
  if (!buffer.ok()) return buffer.status();
  packed_ = *std::move(buffer);
  int64_t offset = 0;
  std::vector<Op> packs;
  for (Op& op : ops_) {
    VisitBase(op, [&](LinearBase& base) {
      if (!is_packed(base)) return;
      QuantizedTensor& q = base.quantized;
      Pack pack;
      pack.from = q;
      pack.rows = base.out_features;
      pack.cols = base.in_features;
      Tensor* to[] = {&pack.to.codes, &pack.to.absmax, &pack.to.nested_absmax, &pack.to.offset};
      int i = 0;
      for (ConstTensor* part : parts(q)) {
        Tensor& target = *to[i++];
        if (!*part) continue;
        target = Tensor{static_cast<uint8_t*>(packed_.data()) + offset, part->dtype, part->rows,
                        part->cols, part->pitch};
        offset += RoundUp(part->Extent());
        *part = target;
      }
      packs.push_back(pack);
    });
  }
  if (absl::Status s = device_.RunOnce(std::move(packs)); !s.ok()) return s;
  packed_bytes_.resize(total);
  return device_.CopyOut(packed_bytes_.data(), packed_.data(), total);
}

absl::Status DeviceRun::Run() {
  const int64_t bytes = int64_t(workspace_poison_.size());
  if (absl::Status s = device_.CopyIn(workspaces_.data(), workspace_poison_.data(), bytes);
      !s.ok()) {
    return s;
  }
  if (absl::Status s = piece_->Run(); !s.ok()) return s;
  if (absl::Status s = device_.Synchronize(); !s.ok()) return s;
  std::vector<uint8_t> after(bytes);
  if (absl::Status s = device_.CopyOut(after.data(), workspaces_.data(), bytes); !s.ok()) return s;
  for (int64_t i = 0; i < bytes; ++i) {
    if (workspace_guard_[i] && after[i] != workspace_poison_[i]) {
      return absl::InternalError(absl::StrCat("a guard of the workspaces was written to, byte ", i,
                                              " of ", bytes, "; the first workspace begins at ",
                                              kGuard));
    }
  }
  std::vector<uint8_t> packed(packed_bytes_.size());
  if (absl::Status s = device_.CopyOut(packed.data(), packed_.data(), int64_t(packed.size()));
      !s.ok()) {
    return s;
  }
  if (packed != packed_bytes_) return absl::InternalError("a packed base was written to");
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint8_t>> DeviceRun::Download() {
  std::vector<uint8_t> result(memory_.image_bytes());
  if (absl::Status s = device_.CopyOut(result.data(), image_.data(), int64_t(result.size()));
      !s.ok()) {
    return s;
  }
  return result;
}

Op ViewsInto(const OperandMemory& memory, Op op, const std::vector<uint8_t>& result) {
  VisitTensors(op, [&](const char*, auto& t) {
    if (!t) return;
    const int64_t offset = memory.OffsetOf(t.data);
    if (offset >= 0) t.data = const_cast<uint8_t*>(result.data()) + offset;
  });
  return op;
}

std::string FirstByteDifference(const OperandMemory& memory, const Op& op,
                                const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  if (a.size() != b.size()) return "images of different sizes";
  const auto [at, other] = std::mismatch(a.begin(), a.end(), b.begin());
  if (at == a.end()) return "";
  return absl::StrFormat("%s: %02x against %02x", Describe(memory, op, at - a.begin()), *at,
                         *other);
}

std::string Difference(const OperandMemory& memory, const Op& op, const Expectation& expectation,
                       const std::vector<uint8_t>& result) {
  // An output that the reference forgot would pass as "anything goes".
  std::string missing;
  VisitTensors(op, [&](const char* name, const auto& t) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(t)>, Tensor>) {
      if (!t || t.Count() == 0 || absl::string_view(name) == "workspace") return;
      const bool known = std::any_of(expectation.begin(), expectation.end(),
                                     [&](const Expected& e) { return e.view.data == t.data; });
      if (!known) missing = absl::StrCat("the reference says nothing of output ", name);
    }
  });
  if (!missing.empty()) return missing;

  std::vector<bool> free(result.size());
  int64_t wrong = 0;
  double worst = 0;
  std::string first;
  for (const Expected& e : expectation) {
    if (!e.view) continue;
    Tensor found = e.view;
    const int64_t begin = memory.OffsetOf(e.view.data);
    found.data = const_cast<uint8_t*>(result.data()) + begin;
    const int64_t size = SizeOf(e.view.dtype);
    for (int64_t r = 0; r < e.view.rows; ++r) {
      for (int64_t c = 0; c < e.view.cols; ++c) {
        const int64_t i = e.Index(r, c);
        if (e.rule[i] == Expected::Rule::kUntouched) continue;
        std::fill_n(free.begin() + begin + (r * e.view.pitch + c) * size, size, true);
        if (e.rule[i] == Expected::Rule::kAny) continue;
        const double value = Get(found, r, c);
        const double error = std::abs(value - e.value[i]);
        const bool right =
            e.rule[i] == Expected::Rule::kBits
                ? value == e.value[i] && std::signbit(value) == std::signbit(e.value[i])
                : error <= e.bound[i];
        if (right) continue;
        ++wrong;
        const double ratio = std::isnan(error) ? INFINITY : error / e.bound[i];
        if (std::isfinite(ratio)) worst = std::max(worst, ratio);
        if (!first.empty()) continue;
        first = absl::StrFormat(
            "%s (row %d, column %d): found %.9g, expected %.9g, off by %.3g, "
            "allowed %.3g",
            e.name, r, c, value, e.value[i], error, e.bound[i]);
      }
    }
  }
  if (wrong > 0) {
    return absl::StrFormat("%s\n  %d elements beyond their bound, the worst by a factor of %.3g",
                           first, wrong, worst);
  }
  const std::vector<uint8_t> before = memory.Image();
  int64_t changed = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    if (free[i] || before[i] == result[i]) continue;
    if (++changed == 1) {
      first = absl::StrCat("changed what it must not: ", Describe(memory, op, int64_t(i)));
    }
  }
  return changed == 0 ? "" : absl::StrCat(first, "\n  ", changed, " bytes in all");
}

}  // namespace qlora::kernels::optest
