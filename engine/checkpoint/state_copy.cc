#include "engine/checkpoint/state_copy.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace qlora::engine {
namespace {

using kernels::ConstTensor;

// Where `part` begins in `whole`, in bytes; −1 where it does not lie in it.
int64_t PlaceIn(ConstTensor whole, ConstTensor part, int64_t bytes) {
  if (Program::IdOf(whole.data) != Program::IdOf(part.data)) return -1;
  const int64_t place = Program::OffsetOf(part.data) - Program::OffsetOf(whole.data);
  return place >= 0 && place + bytes <= whole.Extent() ? place : -1;
}

}  // namespace

StateReader ReaderOf(Execution* execution) {
  return [execution](ConstTensor view, void* to, int64_t bytes) {
    return execution->Read(view, to, bytes);
  };
}

std::vector<StateCopy::Region> StateCopy::RegionsOf(const Storage& storage) {
  std::vector<Region> regions;
  int64_t at = 0;
  const auto add = [&](ConstTensor view) {
    if (!view) return;
    for (const Region& region : regions) {
      if (PlaceIn(region.view, view, view.Extent()) >= 0) return;  // the master, seen by a window
    }
    regions.push_back({view, at});
    at += kernels::BufferBytes(view.Extent());
  };
  add(storage.compute);
  add(storage.master);
  for (const StateWindow& window : storage.windows) {
    for (const StateField field : kStateFields) add(window.Get(field));
  }
  return regions;
}

int64_t StateCopy::BytesOf(const Storage& storage) {
  const std::vector<Region> regions = RegionsOf(storage);
  if (regions.empty()) return 0;
  return regions.back().at + kernels::BufferBytes(regions.back().view.Extent());
}

absl::StatusOr<StateCopy> StateCopy::Create(const Storage& storage) {
  StateCopy copy;
  copy.regions_ = RegionsOf(storage);
  absl::StatusOr<kernels::Buffer> memory = kernels::Buffer::CreateHost(BytesOf(storage));
  if (!memory.ok()) return memory.status();
  copy.memory_ = *std::move(memory);
  return copy;
}

absl::Status StateCopy::Take(Execution* execution) {
  auto* const memory = static_cast<uint8_t*>(memory_.data());
  for (const Region& region : regions_) {
    if (absl::Status s = execution->Read(region.view, memory + region.at, region.view.Extent());
        !s.ok()) {
      return s;
    }
  }
  return absl::OkStatus();
}

absl::Status StateCopy::Read(ConstTensor view, void* to, int64_t bytes) const {
  const auto* const memory = static_cast<const uint8_t*>(memory_.data());
  for (const Region& region : regions_) {
    const int64_t place = PlaceIn(region.view, view, bytes);
    if (place < 0) continue;
    std::memcpy(to, memory + region.at + place, size_t(bytes));
    return absl::OkStatus();
  }
  return absl::InternalError(
      absl::StrCat("buffer ", Program::IdOf(view.data), " is not part of a run's trained state"));
}

}  // namespace qlora::engine
