#include "engine/step/kernel_selection.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/step/kernel_trial.h"

namespace qlora::engine {
namespace {

using kernels::LinearVariant;
using kernels::Op;

template <class LinearOp>
std::string Describe(const LinearOp& op, int64_t rows) {
  std::string text = absl::StrCat(
      LinearOp::kName, ", ", rows, " rows, ", op.base.in_features, " to ", op.base.out_features,
      " features, ", op.base.kind == kernels::LinearBase::Kind::kQuantized ? "4-bit" : "dense");
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    absl::StrAppend(&text, i == 0 ? ", ranks " : " ", op.adapters[i].a.rows);
  }
  return text;
}

bool Contains(const std::vector<LinearVariant>& variants, LinearVariant variant) {
  return std::find(variants.begin(), variants.end(), variant) != variants.end();
}

class Selector {
 public:
  Selector(proto::KernelSelection::Value mode, const EarlierChoices& earlier,
           kernels::Device* device, std::vector<std::string>* warnings)
      : mode_(mode), earlier_(earlier), device_(*device), warnings_(*warnings) {}

  absl::StatusOr<LinearVariant> VariantFor(const Op& op,
                                           const std::vector<LinearVariant>& variants) {
    absl::StatusOr<LinearVariant> choice = Preferred(op, variants);
    if (!choice.ok()) return choice;
    const LinearVariant oracle = Contains(variants, LinearVariant::kDequantized)
                                     ? LinearVariant::kDequantized
                                     : LinearVariant::kFused;
    if (*choice == oracle) return choice;
    const absl::StatusOr<double> distance = Distance(op, *choice, oracle);
    if (!distance.ok()) return distance.status();
    const double bound = DistanceBound(op);
    if (*distance <= bound) return choice;
    warnings_.push_back(absl::StrCat(
        KernelSelection::KeyOf(op), ": kernel ", kernels::NameOf(*choice), " differs from ",
        kernels::NameOf(oracle), " by ", *distance, " of the result, where rounding explains ",
        bound, ": it is not used on this device"));
    return oracle;
  }

 private:
  absl::StatusOr<LinearVariant> Preferred(const Op& op,
                                          const std::vector<LinearVariant>& variants) {
    const std::string key = KernelSelection::KeyOf(op);
    if (const auto it = earlier_.find(key); it != earlier_.end()) {
      for (const LinearVariant variant : variants) {
        if (kernels::NameOf(variant) == it->second) return variant;
      }
      warnings_.push_back(absl::StrCat(
          key, ": the run began with kernel ", it->second,
          ", which this machine has not; the rest of it will differ in rounding from what it "
          "would have been"));
    }
    switch (mode_) {
      case proto::KernelSelection::MEASURED:
        return Fastest(op, variants);
      case proto::KernelSelection::FUSED:
        return Named(LinearVariant::kFused, variants);
      case proto::KernelSelection::DEQUANTIZED:
        return Named(LinearVariant::kDequantized, variants);
      case proto::KernelSelection::HOPPER:
        return Named(LinearVariant::kHopper, variants);
      default:
        return variants.front();
    }
  }

  static LinearVariant Named(LinearVariant wanted, const std::vector<LinearVariant>& variants) {
    return Contains(variants, wanted) ? wanted : variants.front();
  }

  absl::StatusOr<LinearVariant> Fastest(const Op& op, const std::vector<LinearVariant>& variants) {
    LinearVariant best = variants.front();
    double least = INFINITY;
    for (const LinearVariant variant : variants) {
      absl::StatusOr<std::unique_ptr<KernelTrial>> trial =
          KernelTrial::Create(op, variant, &device_);
      if (!trial.ok()) return trial.status();
      const absl::StatusOr<double> seconds = (*trial)->Seconds();
      if (!seconds.ok()) return seconds.status();
      if (*seconds < least) least = *seconds, best = variant;
    }
    return best;
  }

  // ‖a − b‖ / ‖b‖ of the two variants' results; infinite where one is not finite.
  absl::StatusOr<double> Distance(const Op& op, LinearVariant a, LinearVariant b) {
    std::vector<float> results[2];
    for (int i = 0; i < 2; ++i) {
      absl::StatusOr<std::unique_ptr<KernelTrial>> trial =
          KernelTrial::Create(op, i == 0 ? a : b, &device_);
      if (!trial.ok()) return trial.status();
      absl::StatusOr<std::vector<float>> result = (*trial)->Result();
      if (!result.ok()) return result.status();
      results[i] = *std::move(result);
    }
    double difference = 0, norm = 0;
    for (size_t i = 0; i < results[0].size(); ++i) {
      difference += std::pow(double(results[0][i]) - results[1][i], 2);
      norm += double(results[1][i]) * results[1][i];
    }
    const double distance = std::sqrt(difference / norm);
    return std::isfinite(distance) ? distance : INFINITY;
  }

  // Each result is rounded once, and so is what an adapter's first product leaves: 2⁻⁹ of it each,
  // four times in all. The sums themselves differ by u(fp32) for each of `depth` terms at most, in
  // norm.
  static double DistanceBound(const Op& op) {
    int64_t depth = 0;
    std::visit(
        [&](const auto& o) {
          if constexpr (requires { o.variant; }) {
            depth = std::max(o.base.in_features, o.base.out_features);
          }
        },
        op);
    return 4 * 0x1p-9 + double(depth) * 0x1p-24;
  }

  const proto::KernelSelection::Value mode_;
  const EarlierChoices& earlier_;
  kernels::Device& device_;
  std::vector<std::string>& warnings_;
};

}  // namespace

std::string KernelSelection::KeyOf(const Op& op) {
  if (const auto* forward = std::get_if<kernels::LinearForward>(&op)) {
    return Describe(*forward, forward->x.rows);
  }
  if (const auto* backward = std::get_if<kernels::LinearBackwardInput>(&op)) {
    return Describe(*backward, backward->dy.rows);
  }
  return kernels::NameOf(op);
}

LinearVariant KernelSelection::For(const Op& op, const kernels::Device& device) const {
  const std::vector<LinearVariant> variants = device.Variants(op);
  if (variants.size() == 1 || choices_.empty()) return variants.front();
  const auto it = choices_.find(KeyOf(op));
  return it != choices_.end() && Contains(variants, it->second) ? it->second : variants.front();
}

absl::StatusOr<KernelSelection> SelectKernels(absl::Span<const Op> ops,
                                              proto::KernelSelection::Value mode,
                                              const EarlierChoices& earlier,
                                              kernels::Device* device,
                                              std::vector<std::string>* warnings) {
  KernelSelection selection;
  Selector selector(mode, earlier, device, warnings);
  for (const Op& op : ops) {
    const std::vector<LinearVariant> variants = device->Variants(op);
    if (variants.size() == 1 || selection.choices().contains(KernelSelection::KeyOf(op))) continue;
    const absl::StatusOr<LinearVariant> variant = selector.VariantFor(op, variants);
    if (!variant.ok()) return variant.status();
    selection.Choose(op, *variant);
  }
  return selection;
}

}  // namespace qlora::engine
