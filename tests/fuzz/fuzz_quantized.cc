// One weight in bitsandbytes' 4-bit layout: of a published model, or of our own cache.
#include <array>

#include "engine/io/checkpoint_files.h"
#include "engine/io/safetensors_writer.h"
#include "engine/model/prequantized.h"
#include "quant/codebook.h"
#include "quant/dynamic_map.h"
#include "tests/fuzz/fuzz_target.h"

namespace qlora::tests {
namespace {

using engine::Dtype;
using engine::TensorSpec;

absl::string_view BytesOf(const void* data, size_t size) {
  return {static_cast<const char*>(data), size};
}

}  // namespace

// The tensors fit a weight of 4 × 64 in blocks of 64 until the input's bytes behind the quant_state
// change one: which, its type, its extent; 0: it is not there.
void FuzzQuantized(absl::string_view input) {
  const absl::string_view state = TakeText(&input);
  const engine::WeightRow row{.name = "w", .rows = 4, .cols = 64, .quantizable = true};
  const std::array<float, 16>& book = quant::CodeValues(quant::QuantType::kNf4);
  std::vector<TensorSpec> specs = {
      {"w", Dtype::kU8, {128, 1}},
      {"w.absmax", Dtype::kU8, {4}},
      {"w.quant_map", Dtype::kF32, {16}},
      {"w.nested_absmax", Dtype::kF32, {1}},
      {"w.nested_quant_map", Dtype::kF32, {quant::kDynamicMapSize}},
      {engine::QuantStateName(row, quant::QuantType::kNf4), Dtype::kU8, {int64_t(state.size())}}};
  const absl::string_view contents[] = {
      {},
      {},
      BytesOf(book.data(), sizeof(book)),
      {},
      BytesOf(quant::SignedDynamicMap().data(), 4 * quant::kDynamicMapSize),
      state};
  while (!input.empty()) {
    TensorSpec& spec = specs[TakeByte(&input) % specs.size()];
    spec.dtype = static_cast<Dtype>(TakeByte(&input) % (int(Dtype::kU64) + 1));
    spec.shape[0] = TakeByte(&input);
  }
  std::vector<std::string> bytes;
  std::vector<engine::TensorData> tensors;
  for (size_t i = 0; i < specs.size(); ++i) {
    const auto size = engine::TensorBytes(specs[i].dtype, specs[i].shape, specs[i].name);
    if (!size.ok()) return;
    bytes.emplace_back(contents[i]).resize(size_t(*size));
  }
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].shape[0] == 0) continue;
    tensors.push_back(
        {specs[i], {reinterpret_cast<const uint8_t*>(bytes[i].data()), bytes[i].size()}});
  }
  FaultyEnv env;
  PutFile(&env, "m/other", "");
  Require(engine::WriteSafetensors(&env, "m/model.safetensors", tensors).ok(), "a model in memory");
  const auto model = engine::ShardedModel::Open(&env, "m");
  Require(model.ok(), "a model that can be opened");
  if (!engine::IsPrequantized(*model, row)) return;
  std::vector<std::string> warnings;
  const auto weight = engine::ReadPrequantized(*model, row, &warnings);
  if (!weight.ok()) return;
  Require(weight->spec.Validate().ok(), "a quantization that kernels know");
  Require(weight->codes.info->bytes == weight->spec.CodeBytes(row.Count()), "a code each");
  const int64_t scale = weight->spec.double_quant ? 1 : 4;
  Require(weight->absmax.info->bytes == scale * weight->spec.BlockCount(row.Count()),
          "a scale a block");
}

}  // namespace qlora::tests
