#include "engine/step/integrity.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/io/crc32c.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using kernels::ConstTensor;
using kernels::DType;

constexpr int64_t kChunk = 1 << 20;  // bytes read at a time
constexpr char kAdvice[] =
    ". Memory of this kind of machine fails without a word: test it, or its card. No checkpoint "
    "was written since it was last found well; the same command goes on from the last";

// CRC-32C finds every flipped bit, and every burst of up to 32.
absl::StatusOr<uint32_t> Checksum(Execution* execution, ConstTensor view) {
  std::vector<char> bytes(size_t(std::min(kChunk, view.Extent())));
  const BufferId id = Program::IdOf(view.data);
  const int64_t offset = Program::OffsetOf(view.data);
  uint32_t crc = 0;
  for (int64_t at = 0; at < view.Extent(); at += kChunk) {
    const int64_t n = std::min(kChunk, view.Extent() - at);
    const ConstTensor part{Program::AddressOf(id, offset + at), DType::kU8, 1, n, n};
    if (absl::Status s = execution->Read(part, bytes.data(), n); !s.ok()) return s;
    crc = ExtendCrc32c(crc, {bytes.data(), size_t(n)});
  }
  return crc;
}

// "rank 1 differs from the majority"; empty where all say the same.
std::string WhoDiffers(const std::vector<std::string>& all) {
  std::map<std::string, std::vector<int>> holders;
  for (size_t rank = 0; rank < all.size(); ++rank) holders[all[rank]].push_back(int(rank));
  if (holders.size() == 1) return "";
  std::vector<int> culprits;
  for (const auto& [value, ranks] : holders) {
    if (2 * ranks.size() > all.size()) continue;
    culprits.insert(culprits.end(), ranks.begin(), ranks.end());
  }
  std::sort(culprits.begin(), culprits.end());
  return culprits.size() < all.size()
             ? absl::StrCat("rank ", absl::StrJoin(culprits, ", rank "),
                            " differs from the majority")
             : absl::StrCat("of ", all.size(), " ranks none has a majority");
}

}  // namespace

absl::StatusOr<Integrity> Integrity::Create(Execution* execution, Ranks* ranks) {
  Integrity integrity(execution, ranks);
  const Storage& storage = execution->plan().run.storage;
  for (const WeightSlot& slot : storage.weights) {
    if (slot.group >= 0) continue;  // its ranks have shares of it
    const kernels::QuantizedOutput& q = slot.quantized;
    for (const ConstTensor view :
         {ConstTensor(slot.frozen), ConstTensor(q.codes), ConstTensor(q.absmax),
          ConstTensor(q.nested_absmax), ConstTensor(q.offset)}) {
      if (view) integrity.frozen_.push_back({slot.row.name, view});
    }
  }
  for (const GatheredGroup& group : storage.gathered) {
    integrity.frozen_.push_back({group.name + ", share", group.share, /*is_share=*/true});
  }
  for (Frozen& frozen : integrity.frozen_) {
    absl::StatusOr<uint32_t> checksum = Checksum(execution, frozen.view);
    if (!checksum.ok()) return checksum.status();
    frozen.checksum = *checksum;
  }
  if (ranks == nullptr) return integrity;
  if (absl::Status s = integrity.CompareLoaded(); !s.ok()) return s;
  return integrity;
}

absl::Status Integrity::CompareLoaded() {
  const Storage& storage = execution_->plan().run.storage;
  absl::StatusOr<uint32_t> checksum = Checksum(execution_, storage.trained());
  if (!checksum.ok()) return checksum.status();
  std::string mine = absl::StrCat(*checksum);
  for (const Frozen& frozen : frozen_) {
    if (!frozen.is_share) absl::StrAppend(&mine, " ", frozen.checksum);
  }
  absl::StatusOr<std::vector<std::string>> all =
      ranks_->control().AllGather("checksums of what was loaded", absl::StrCat(Crc32c(mine)));
  if (!all.ok()) return all.status();
  const std::string who = WhoDiffers(*all);
  if (who.empty()) return absl::OkStatus();
  return proto::BadDataError(
      absl::StrCat("the ranks have not loaded the same weights: ", who,
                   ". Their machines hold different copies of the checkpoint to go on from, or of "
                   "quantization.quantize_cache: give all of them the same, or remove that cache"));
}

absl::Status Integrity::Check(int64_t step) {
  if (absl::Status s = CheckFrozen(); !s.ok()) return s;
  return ranks_ == nullptr ? absl::OkStatus() : CompareTrained(step);
}

absl::Status Integrity::CheckFrozen() {
  for (const Frozen& frozen : frozen_) {
    absl::StatusOr<uint32_t> checksum = Checksum(execution_, frozen.view);
    if (!checksum.ok()) return checksum.status();
    if (*checksum == frozen.checksum) continue;
    return proto::NumbersBadError(
        absl::StrCat("the frozen weight ", frozen.name, " is no longer what was loaded", kAdvice));
  }
  return absl::OkStatus();
}

absl::Status Integrity::CompareTrained(int64_t step) {
  const Storage& storage = execution_->plan().run.storage;
  absl::StatusOr<uint32_t> checksum = Checksum(execution_, storage.trained());
  if (!checksum.ok()) return checksum.status();
  absl::StatusOr<std::vector<std::string>> all = ranks_->control().AllGather(
      absl::StrCat("checksums of step ", step), absl::StrCat(*checksum));
  if (!all.ok()) return all.status();
  const std::string who = WhoDiffers(*all);
  if (who.empty()) return absl::OkStatus();
  return proto::NumbersBadError(absl::StrCat(
      "behind step ", step, " the ranks do not hold the same parameters: ", who, kAdvice));
}

}  // namespace qlora::engine
