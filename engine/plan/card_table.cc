#include "engine/plan/card_table.h"

#include <optional>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/planned_card.h"
#include "proto/errors.h"
#include "proto/memory_size.h"

namespace qlora::engine {
namespace {

struct Card {
  const char* name;
  int major, minor;  // compute capability
  int multiprocessors;
  int64_t memory_bytes;  // by the label: cards report somewhat more
  double memory_rate;    // bytes/s
  double bf16_flops;     // dense, sums in fp32
  double link_rate;      // bytes/s each way, of its PCIe slot
  const char* refused;   // why the engine cannot use it, or null
};

constexpr int64_t kGB = 1'000'000'000;
// A slot of 16 lanes, by generation.
constexpr double kPcie3 = 15.8e9, kPcie4 = 31.5e9, kPcie5 = 63e9;
constexpr const char* kNoBf16 = "no bf16 tensor cores";

// NVIDIA's data sheets and architecture white papers (A100 2020, GA102 2021, Ada 2022, H100 2022,
// H200 2023, L4 and L40S 2023, Blackwell RTX 2025): dense figures, without sparsity; on GeForce the
// rate with fp32 sums, half of that with fp16 sums.
constexpr Card kCards[] = {
    {"A100-40GB", 8, 0, 108, 40 * kGB, 1555e9, 312e12, kPcie4, nullptr},
    {"A100-80GB", 8, 0, 108, 80 * kGB, 2039e9, 312e12, kPcie4, nullptr},
    {"H100", 9, 0, 132, 80 * kGB, 3350e9, 989e12, kPcie5, nullptr},
    {"H200", 9, 0, 132, 141 * kGB, 4800e9, 989e12, kPcie5, nullptr},
    {"L4", 8, 9, 58, 24 * kGB, 300e9, 121e12, kPcie4, nullptr},
    {"L40S", 8, 9, 142, 48 * kGB, 864e9, 362e12, kPcie4, nullptr},
    {"A10", 8, 6, 72, 24 * kGB, 600e9, 125e12, kPcie4, nullptr},
    {"RTX 3090", 8, 6, 82, 24 * kGB, 936e9, 71e12, kPcie4, nullptr},
    {"RTX 4090", 8, 9, 128, 24 * kGB, 1008e9, 165e12, kPcie4, nullptr},
    {"RTX 5090", 12, 0, 170, 32 * kGB, 1792e9, 209e12, kPcie5, nullptr},
    {"T4", 7, 5, 40, 16 * kGB, 320e9, 65e12, kPcie3, kNoBf16},
    {"V100", 7, 0, 80, 32 * kGB, 900e9, 125e12, kPcie3, kNoBf16},
};

// Shares of a data sheet's rates that large products and streams reach: 716 of 989 TFLOP/s and 3.0
// of 3.35 TB/s on an H100 by others' measurements. No figure of this engine's: it has not run on a
// card yet. Over PCIe copies reach 26 GB/s in a slot of generation 4, as others measured.
constexpr double kReachedFlops = 0.72, kReachedMemory = 0.89, kReachedLink = 0.82;

// What fits which card is told apart by letters and digits alone: "RTX4090" is "rtx 4090".
std::string Plain(absl::string_view name) {
  std::string plain;
  for (const char c : name) {
    if (absl::ascii_isalnum(c)) plain += absl::ascii_tolower(c);
  }
  return plain;
}

absl::StatusOr<Card> FindCard(const std::string& name) {
  std::vector<std::string> names;
  for (const Card& card : kCards) {
    if (Plain(card.name) != Plain(name)) {
      if (card.refused == nullptr) names.emplace_back(card.name);
      continue;
    }
    if (card.refused == nullptr) return card;
    return proto::NoDeviceError(absl::StrCat("plan.card: ", card.name, " has compute capability ",
                                             card.major, ".", card.minor, ", ", card.refused,
                                             "; the oldest that this program runs on is ",
                                             kernels::cuda::kOldestMajor, ".0"));
  }
  return proto::BadJobError(
      absl::StrCat("plan.card: found \"", name, "\"; allowed: ", absl::StrJoin(names, ", "),
                   "; for another card give plan.memory, plan.memory_bytes_per_second and "
                   "plan.flops_per_second instead"));
}

}  // namespace

bool NamesDevice(const proto::Plan& plan) {
  return plan.has_card() || plan.has_memory() || plan.has_memory_bytes_per_second() ||
         plan.has_flops_per_second();
}

absl::StatusOr<PlannedDevice> FindPlannedDevice(const proto::Plan& plan) {
  Card card = {"a card by hand", 9, 0, 132, 0, 0, 0, kPcie4, nullptr};
  if (plan.has_card()) {
    absl::StatusOr<Card> found = FindCard(plan.card());
    if (!found.ok()) return found.status();
    card = *found;
  } else if (!plan.has_memory() || !plan.has_memory_bytes_per_second() ||
             !plan.has_flops_per_second()) {
    return proto::BadJobError(
        "plan.card: absent; without it plan.memory, plan.memory_bytes_per_second and "
        "plan.flops_per_second are all needed");
  }
  if (plan.has_memory()) {
    absl::StatusOr<int64_t> bytes = proto::ParseMemorySize(plan.memory());
    if (!bytes.ok()) return proto::BadJobError(bytes.status().message());
    card.memory_bytes = *bytes;
  }
  PlannedDevice planned;
  planned.rates = {.matmul_flops = plan.has_flops_per_second() ? plan.flops_per_second()
                                                               : kReachedFlops * card.bf16_flops,
                   .memory_bytes = plan.has_memory_bytes_per_second()
                                       ? plan.memory_bytes_per_second()
                                       : kReachedMemory * card.memory_rate,
                   .link_bytes = plan.has_link_bytes_per_second() ? plan.link_bytes_per_second()
                                                                  : kReachedLink * card.link_rate};
  std::vector<std::string> sources;
  if (!plan.has_flops_per_second()) {
    sources.push_back(
        absl::StrFormat("%.0f %% of %.0f TFLOP/s", 100 * kReachedFlops, card.bf16_flops / 1e12));
  }
  if (!plan.has_memory_bytes_per_second()) {
    sources.push_back(
        absl::StrFormat("%.0f %% of %.0f GB/s", 100 * kReachedMemory, card.memory_rate / 1e9));
  }
  planned.rates_source = sources.empty() ? "the job's figures"
                                         : absl::StrCat(absl::StrJoin(sources, " and "),
                                                        " by the data sheet; not measured");
  planned.device = kernels::cuda::PlannedCard({.name = card.name,
                                               .major = card.major,
                                               .minor = card.minor,
                                               .multiprocessors = card.multiprocessors,
                                               .memory_bytes = card.memory_bytes});
  return planned;
}

}  // namespace qlora::engine
