#include "engine/lora/initialize.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/philox.h"

namespace qlora::engine {
namespace {

// Keeps these numbers apart from the dropout's, which count under the plain seed ("lora").
constexpr uint32_t kStream = 0x6c6f7261;

// "1,703,936".
std::string Grouped(int64_t number) {
  const std::string digits = absl::StrCat(number);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text.push_back(',');
    text.push_back(digits[i]);
  }
  return text;
}

std::string ShownBytes(int64_t bytes) {
  if (bytes < 1024) return absl::StrFormat("%d B", bytes);
  if (bytes < 1 << 20) return absl::StrFormat("%.1f KiB", double(bytes) / 1024);
  if (bytes < 1 << 30) return absl::StrFormat("%.1f MiB", double(bytes) / (1 << 20));
  return absl::StrFormat("%.2f GiB", double(bytes) / (1 << 30));
}

}  // namespace

uint64_t TensorKey(absl::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

void InitializeLoraA(uint64_t seed, const AdaptedModule& module, absl::Span<float> a) {
  const uint64_t key = TensorKey(module.KeyA());
  const double bound = 1.0 / std::sqrt(double(module.in));
  for (uint64_t group = 0; group * 4 < a.size(); ++group) {
    const auto bits = kernels::Philox(
        {uint32_t(group), uint32_t(group >> 32), uint32_t(key), uint32_t(key >> 32)},
        {uint32_t(seed), uint32_t(seed >> 32) ^ kStream});
    for (uint64_t lane = 0; lane < 4 && group * 4 + lane < a.size(); ++lane) {
      const double u = (double(bits[lane]) + 0.5) * 0x1p-32;
      a[group * 4 + lane] = static_cast<float>((2.0 * u - 1.0) * bound);
    }
  }
}

LoraSize MeasureLora(const LoraTargets& targets, absl::Span<const WeightRow> rows) {
  constexpr int64_t kBytesPerElement = 2;  // bf16
  LoraSize size;
  size.trained_parameters = targets.ParameterCount();
  for (const WeightRow& row : rows) size.model_parameters += row.Count();
  size.share =
      double(size.trained_parameters) / double(size.trained_parameters + size.model_parameters);
  size.adapter_bytes = size.trained_parameters * kBytesPerElement;
  return size;
}

std::string LoraSizeLine(const LoraTargets& targets, const LoraSize& size) {
  const int64_t rank = targets.modules.empty() ? 0 : targets.modules.front().rank;
  return absl::StrFormat(
      "trained: %s of %s parameters (%.4f %%): r = %d on %d linears; adapter %s",
      Grouped(size.trained_parameters), Grouped(size.trained_parameters + size.model_parameters),
      100.0 * size.share, rank, targets.modules.size(), ShownBytes(size.adapter_bytes));
}

}  // namespace qlora::engine
