#include "engine/drift/adapter_weights.h"

#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "engine/io/adapter_file.h"
#include "engine/lora/saved_adapter.h"
#include "engine/model/element_convert.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

// One factor in fp32.
absl::Status Convert(const std::string& path, const std::string& tensor, Dtype dtype,
                     absl::Span<const uint8_t> bytes, std::vector<float>* to) {
  const kernels::DType type = *FloatType(dtype);
  to->resize(bytes.size() / kernels::SizeOf(type));
  const int64_t bad =
      ConvertElements(type, bytes.data(), int64_t(to->size()), kernels::DType::kF32, to->data());
  if (bad < 0) return absl::OkStatus();
  return proto::BadDataError(absl::StrCat(path, ": tensor ", tensor,
                                          " holds NaN or infinity at element ", bad,
                                          ": its training diverged; give another checkpoint"));
}

absl::Span<const uint8_t> BytesOf(const std::vector<float>& values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size() * 4};
}

}  // namespace

float AdapterWeights::Scaling() const {
  return float(lora_alpha / (use_rslora ? std::sqrt(double(r)) : double(r)));
}

int64_t AdapterWeights::Bytes() const {
  int64_t bytes = 0;
  for (const auto& [module, factors] : modules) {
    bytes += int64_t(factors.a.size() + factors.b.size()) * 4;
  }
  return bytes;
}

absl::StatusOr<AdapterWeights> ReadAdapterWeights(Env* env, const std::string& folder,
                                                  absl::Span<const AdaptedModule> modules) {
  const absl::StatusOr<LoadedAdapter> loaded = ReadAdapterOf(env, folder, modules);
  if (!loaded.ok()) return loaded.status();
  const AdapterConfig& config = loaded->adapter.config;
  AdapterWeights weights{
      .r = config.r, .lora_alpha = config.lora_alpha, .use_rslora = config.use_rslora};
  for (size_t i = 0; i < modules.size(); ++i) {
    const AdapterModule& module = loaded->adapter.modules[i];
    AdapterWeights::Factors& factors = weights.modules[module.path];
    factors = {.in = module.in, .out = module.out};
    const std::string& path = loaded->file.path();
    absl::Status s = Convert(path, modules[i].KeyA(), module.dtype, module.a, &factors.a);
    if (s.ok()) s = Convert(path, modules[i].KeyB(), module.dtype, module.b, &factors.b);
    if (!s.ok()) return s;
  }
  return weights;
}

absl::Status WriteAdapterWeights(Env* env, const std::string& folder, const AdapterWeights& weights,
                                 double lora_dropout, const std::string& base_model) {
  AdapterTensors adapter{.config = {.base_model_name_or_path = base_model,
                                    .r = weights.r,
                                    .lora_alpha = weights.lora_alpha,
                                    .lora_dropout = lora_dropout,
                                    .use_rslora = weights.use_rslora}};
  std::set<std::string> suffixes;
  for (const auto& [module, factors] : weights.modules) {
    suffixes.insert(module.substr(module.rfind('.') + 1));
    adapter.modules.push_back({.path = module,
                               .in = factors.in,
                               .out = factors.out,
                               .dtype = Dtype::kF32,
                               .a = BytesOf(factors.a),
                               .b = BytesOf(factors.b)});
  }
  adapter.config.target_modules.assign(suffixes.begin(), suffixes.end());
  return WriteAdapter(env, folder, adapter);
}

}  // namespace qlora::engine
