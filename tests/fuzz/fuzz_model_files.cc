// What a model folder holds beside its tokenizer.
#include <algorithm>

#include "engine/io/checkpoint_files.h"
#include "engine/io/safetensors.h"
#include "engine/model/families.h"
#include "engine/model/model_spec.h"
#include "tests/fuzz/fuzz_target.h"

namespace qlora::tests {

void FuzzSafetensors(absl::string_view input) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(input.data());
  const auto header =
      engine::ParseSafetensorsHeader({bytes, input.size()}, int64_t(input.size()), "f");
  if (!header.ok()) return;
  int64_t end = header->data_start;
  for (const engine::TensorInfo& tensor : header->tensors) {
    Require(tensor.offset == end && tensor.bytes >= 0, "tensors follow each other");
    end += tensor.bytes;
    const int64_t bits = tensor.elements() * engine::DtypeBits(tensor.dtype);
    Require(bits == tensor.bytes * 8, "a tensor has the bytes of its shape");
  }
  Require(end == int64_t(input.size()), "tensors fill the file");
}

void FuzzModelConfig(absl::string_view input) {
  FaultyEnv env;
  PutFile(&env, "m/config.json", TakeText(&input));
  if (!input.empty()) PutFile(&env, "m/generation_config.json", TakeText(&input));
  const auto spec = engine::ReadModelConfig(&env, "m");
  if (!spec.ok()) return;
  Require(spec->kv_heads > 0 && spec->query_heads % spec->kv_heads == 0, "heads share keys");
  Require(spec->rope.rotary_dims <= spec->head_size, "no more turns than the head has");
  for (const int32_t id : spec->eos_ids) Require(id >= 0 && id < spec->vocab, "ids are tokens");
  // Models are listed layer by layer: not those whose list alone is long.
  if (spec->layers > 64) return;
  int64_t count = 0;
  for (const engine::WeightRow& row : WeightRows(*spec)) {
    Require(row.rows > 0 && row.cols > 0, "weights have a size");
    count += row.Count();
  }
  Require(count == ParameterCount(*spec), "parameters are those of the rows");
}

namespace {

// Of tensors of two bf16 each.
std::string Shard(const std::string& header, size_t data_bytes) {
  std::string file(8, '\0');
  file[0] = char(header.size());
  return file + header + std::string(data_bytes, '\0');
}

}  // namespace

void FuzzIndex(absl::string_view input) {
  static const std::string kOne =
      Shard(R"({"t":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}})", 4);
  static const std::string kTwo = Shard(R"({"t":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
                                        R"("u":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]}})",
                                        8);
  FaultyEnv env;
  PutFile(&env, "m/pytorch_model.bin", "");
  if (const absl::string_view index = TakeText(&input); !index.empty()) {
    PutFile(&env, "m/model.safetensors.index.json", index);
  }
  if (!input.empty()) PutFile(&env, "m/model.safetensors", input);
  PutFile(&env, "m/a.safetensors", kOne);
  PutFile(&env, "m/b.safetensors", kTwo);
  const auto model = engine::ShardedModel::Open(&env, "m");
  if (!model.ok()) return;
  int64_t bytes = 0;
  for (const std::string& name : model->Names()) {
    const auto tensor = model->Get(name);
    Require(tensor.ok() && tensor->info->name == name, "what is listed is there");
    bytes += tensor->info->bytes;
  }
  Require(bytes == model->total_bytes(), "the bytes are those of the tensors");
}

}  // namespace qlora::tests
