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
  const absl::string_view config = TakeText(&input), generation = TakeText(&input);
  auto spec = engine::ParseModelConfig(config, "config.json");
  if (!spec.ok()) return;
  engine::AddGenerationConfig(generation, "generation_config.json", &*spec).IgnoreError();
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

void FuzzIndex(absl::string_view input) {
  // One tensor, "t" of two bf16.
  static const std::string kHeader =
      R"({"t":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}          )";
  std::string shard(8, '\0');
  shard[0] = char(kHeader.size());
  shard += kHeader + std::string(4, '\0');
  FaultyEnv env;
  PutFile(&env, "m/model.safetensors.index.json", input);
  PutFile(&env, "m/a.safetensors", shard);
  PutFile(&env, "m/b.safetensors", shard);
  const auto model = engine::ShardedModel::Open(&env, "m");
  if (!model.ok()) return;
  for (const std::string& name : model->Names()) Require(name == "t", "names are those of shards");
}

}  // namespace qlora::tests
