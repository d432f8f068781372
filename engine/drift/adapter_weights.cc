#include "engine/drift/adapter_weights.h"

#include <cmath>
#include <set>

#include "engine/io/adapter_file.h"
#include "engine/model/element_convert.h"

namespace qlora::engine {
namespace {

std::vector<float> ToFloats(const AdapterModule& module, absl::Span<const uint8_t> bytes) {
  const kernels::DType type = *FloatType(module.dtype);
  std::vector<float> values(bytes.size() / kernels::SizeOf(type));
  ConvertElements(type, bytes.data(), int64_t(values.size()), kernels::DType::kF32, values.data());
  return values;
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

absl::StatusOr<AdapterWeights> ReadAdapterWeights(Env* env, const std::string& folder) {
  absl::StatusOr<LoadedAdapter> loaded = ReadAdapter(env, folder, {});
  if (!loaded.ok()) return loaded.status();
  const AdapterConfig& config = loaded->adapter.config;
  AdapterWeights weights{
      .r = config.r, .lora_alpha = config.lora_alpha, .use_rslora = config.use_rslora};
  for (const AdapterModule& module : loaded->adapter.modules) {
    weights.modules[module.path] = {.in = module.in,
                                    .out = module.out,
                                    .a = ToFloats(module, module.a),
                                    .b = ToFloats(module, module.b)};
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
