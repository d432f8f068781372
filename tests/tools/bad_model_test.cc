// Model folders that are refused: files that are missing, cut short, or lie.

#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

constexpr char kWeights[] = "base/model.safetensors";

class BadModel : public Workplace {
 protected:
  void Remove(const std::string& name) const { std::filesystem::remove(Path(name)); }
  // The header's text, and what follows it.
  std::pair<std::string, std::string> Parts() const {
    const std::string all = Read(kWeights);
    uint64_t length = 0;
    std::memcpy(&length, all.data(), 8);
    return {all.substr(8, length), all.substr(8 + length)};
  }
  void WriteParts(const std::string& header, const std::string& data) const {
    WriteParts(header, data, header.size());
  }
  void WriteParts(const std::string& header, const std::string& data, uint64_t length) const {
    std::string all(8, '\0');
    std::memcpy(all.data(), &length, 8);
    Write(kWeights, all + header + data);
  }
  void EditHeader(const std::string& from, const std::string& to) const {
    auto [header, data] = Parts();
    const size_t at = header.find(from);
    ASSERT_NE(at, std::string::npos) << from << " in " << header;
    WriteParts(header.replace(at, from.size(), to), data);
  }
};

TEST_F(BadModel, FolderAbsent) {
  ExpectRefused(65, {"nowhere"}, {"--set", "model=" + Path("nowhere")});
}

TEST_F(BadModel, HubIdThatIsNotInTheCache) {
  ExpectRefused(65, {"some-org/some-model", "download"}, {"--set", "model=some-org/some-model"});
}

TEST_F(BadModel, ConfigAbsent) {
  Remove("base/config.json");
  ExpectRefused(65, {"base/config.json is missing", "Hugging Face's layout"});
}

TEST_F(BadModel, ConfigMalformed) {
  Write("base/config.json", "{\"model_type\": \"llama\",");
  ExpectRefused(65, {"base/config.json: not valid JSON: byte 24"});
}

TEST_F(BadModel, UnknownFamily) {
  Edit("base/config.json", "\"model_type\": \"llama\"", "\"model_type\": \"mamba\"");
  ExpectRefused(65, {"model_type", "mamba", "llama"});
}

TEST_F(BadModel, ConfigWithoutASize) {
  Edit("base/config.json", "\"hidden_size\": 32,", "");
  // One fault is told once, and not what follows from it.
  ExpectRefused(65, {"base/config.json: hidden_size: found nothing, allowed: an integer from 1"});
}

TEST_F(BadModel, ConfigWithAnotherSizeThanTheWeights) {
  Edit("base/config.json", "\"intermediate_size\": 48", "\"intermediate_size\": 64");
  ExpectRefused(65, {"gate_proj.weight", "48", "64"});
}

TEST_F(BadModel, ConfigOfAHugeModel) {
  Edit("base/config.json", "\"vocab_size\": 272", "\"vocab_size\": 16777216");
  ExpectRefused(65, {"embed_tokens", "16777216", "272"});
}

TEST_F(BadModel, WeightsAbsent) {
  Remove(kWeights);
  ExpectRefused(65, {"base holds neither model.safetensors nor model.safetensors.index.json"});
}

TEST_F(BadModel, WeightsEmpty) {
  Write(kWeights, "");
  ExpectRefused(65, {"base/model.safetensors: 0 bytes are too short"});
}

TEST_F(BadModel, WeightsCutShort) {
  const std::string all = Read(kWeights);
  for (const size_t length : {size_t{3}, size_t{8}, size_t{100}, all.size() / 2, all.size() - 1}) {
    Write(kWeights, all.substr(0, length));
    ExpectRefused(65, {"base/model.safetensors", length < 8      ? "too short"
                                                 : length <= 100 ? "cut short"
                                                                 : "but the file holds"});
  }
}

TEST_F(BadModel, BytesBehindTheData) {
  Write(kWeights, Read(kWeights) + "x");
  ExpectRefused(65, {"base/model.safetensors: the tensors end at byte", "but the file has"});
}

TEST_F(BadModel, HeaderLengthThatLies) {
  const auto [header, data] = Parts();
  for (const uint64_t length : {uint64_t{0}, header.size() - 1, header.size() + data.size() + 1,
                                uint64_t{1} << 33, uint64_t{1} << 62, ~uint64_t{0}}) {
    WriteParts(header, data, length);
    ExpectRefused(65, {"model.safetensors"});
  }
}

TEST_F(BadModel, HeaderThatIsNotJson) {
  const auto [header, data] = Parts();
  WriteParts(std::string(header.size(), '['), data);
  ExpectRefused(65, {"base/model.safetensors: not a safetensors file"});
}

TEST_F(BadModel, OffsetsBeyondTheFile) {
  EditHeader("\"data_offsets\":[0,", "\"data_offsets\":[9999999999,");
  ExpectRefused(65, {"base/model.safetensors", "lm_head.weight", "9999999999"});
}

TEST_F(BadModel, OffsetsThatOverlap) {
  EditHeader("\"data_offsets\":[0,", "\"data_offsets\":[2,");
  ExpectRefused(65, {"base/model.safetensors", "lm_head.weight", "takes 17408 bytes", "17406"});
}

TEST_F(BadModel, TypeThatDoesNotFitItsBytes) {
  EditHeader("\"dtype\":\"BF16\"", "\"dtype\":\"F32\"");
  ExpectRefused(65, {"base/model.safetensors", "lm_head.weight", "takes 34816 bytes"});
}

TEST_F(BadModel, TypeThatIsNoFloat) {
  EditHeader("\"dtype\":\"BF16\"", "\"dtype\":\"I16\"");
  ExpectRefused(65, {"I16"});
}

TEST_F(BadModel, TensorAbsent) {
  EditHeader("model.norm.weight", "model.gone.weight");
  ExpectRefused(65, {"model.norm.weight"});
}

TEST_F(BadModel, TensorTwice) {
  EditHeader("model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight");
  ExpectRefused(65, {"model.safetensors", "model.layers.0.mlp.up_proj.weight"});
}

TEST_F(BadModel, NotANumberInAWeight) {
  // Weights are read when the run begins: with results of another job there, the run must have been
  // asked to replace them, and still must not.
  const std::vector<std::string> more = {"--set", "overwrite_output_dir=true"};
  const std::pair<const char*, const char*> cases[] = {
      {"model.layers.1.mlp.up_proj.weight", "\xc0\x7f"},  // NaN
      {"model.norm.weight", "\x80\x7f"},                  // infinities
      {"model.embed_tokens.weight", "\x80\xff"}};
  for (const auto& [name, bits] : cases) {
    auto [header, data] = Parts();
    const size_t offsets = header.find("data_offsets\":[", header.find(name)) + 15;
    const std::string good = data;
    data.replace(std::stoul(header.substr(offsets)) + 20, 2, bits, 2);
    WriteParts(header, data);
    ExpectRefused(65, {Path(kWeights), name, "NaN or infinity", "element 10", "fetch it again"},
                  more);
    WriteParts(header, good);
  }
}

TEST_F(BadModel, IndexThatLeavesTheFolder) {
  Remove(kWeights);
  for (const char* shard : {"../model.safetensors", "/etc/passwd", "a/../../m.safetensors"}) {
    Write("base/model.safetensors.index.json",
          absl::StrCat("{\"weight_map\": {\"model.norm.weight\": \"", shard, "\"}}"));
    ExpectRefused(65, {"base/model.safetensors.index.json", shard, "only plain file names"});
  }
}

TEST_F(BadModel, IndexOfAnAbsentShard) {
  Remove(kWeights);
  Write("base/model.safetensors.index.json",
        "{\"weight_map\": {\"model.norm.weight\": \"model-00001-of-00002.safetensors\"}}");
  ExpectRefused(65, {"model-00001-of-00002.safetensors"});
}

}  // namespace
}  // namespace qlora::tests
