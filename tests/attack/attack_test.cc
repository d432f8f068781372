// Files made to harm whoever reads them, given to the program as a user would: each is refused by
// its own message, in 600 MiB of address space and a tenth of a second, with nothing written, and
// before more than 1 MiB is allocated at once beyond what the file really holds.
// (Parsers alone meet many more in tests/engine/io and tests/engine/text.)

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "engine/io/manifest.h"
#include "tests/support/paths.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kAddressSpace = int64_t{600} << 20;
// And the NUL of a string of so many bytes.
constexpr int64_t kLargestAllocation = (int64_t{1} << 20) + 1;
constexpr double kCpuSeconds = 0.1;
// Where the machine's speed was measured before the file is looked at.
constexpr double kLoadSeconds = 0.5;
constexpr int kDeep = 1'000'000;

std::string Repeat(const std::string& piece, int count) {
  std::string text;
  text.reserve(piece.size() * size_t(count));
  for (int i = 0; i < count; ++i) text += piece;
  return text;
}

// A safetensors file with this header and so many bytes of data; what it says of the header's
// length is `lie`, if given.
std::string Weights(const std::string& header, size_t data = 0,
                    std::optional<uint64_t> lie = std::nullopt) {
  const uint64_t length = lie.value_or(header.size());
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(data, '\0');
}
std::string OneTensor(const std::string& shape, const std::string& offsets) {
  return absl::StrCat("{\"t\":{\"dtype\":\"BF16\",\"shape\":[", shape, "],\"data_offsets\":[",
                      offsets, "]}}");
}

// Sound, but for their number.
std::string EmptyTensors(int count) {
  std::string header = "{";
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&header, i == 0 ? "" : ",", "\"", i,
                    "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}");
  }
  return header + "}";
}

struct Attack {
  std::string name;
  std::string file;      // in the workplace
  std::string contents;  // where `from` is empty; else `from` in the file is replaced by this
  std::string message;   // part of it
  std::string from = "";
  int64_t sparse = 0;  // the file grows to this length without taking room
  int code = 65;
  double cpu_seconds = kCpuSeconds;
  int64_t memory_per_byte = 1;  // of what the file really holds
};

void PrintTo(const Attack& attack, std::ostream* out) { *out << attack.name; }

constexpr char kWeights[] = "base/model.safetensors";
constexpr char kIndex[] = "base/model.safetensors.index.json";
constexpr char kConfig[] = "base/config.json";
constexpr char kTokenizer[] = "base/tokenizer.json";
constexpr char kData[] = "data.jsonl";
constexpr char kJob[] = "job";  // the job's text, up to its data

std::vector<Attack> WeightAttacks() {
  return {
      {"weights_length_2_63", kWeights, Weights("{}", 0, uint64_t{1} << 63), "at most 100000000"},
      {"weights_length_200_gb", kWeights, Weights("{}", 0, 200'000'000'000), "at most 100000000"},
      {"weights_length_100_mb_of_nothing", kWeights, Weights("{}", 0, 100'000'000), "cut short"},
      {"weights_length_wraps", kWeights, Weights("{}", 0, ~uint64_t{0} - 7), "at most 100000000"},
      {"weights_of_zeros", kWeights, "", "does not begin with '{'", "", int64_t{256} << 20},
      {"weights_pickle", kWeights, "\x80\x02}q\x01.", "too short"},
      {"weights_zip", kWeights, "PK\x03\x04" + std::string(100, '\0'), "cut short"},
      {"weights_depth", kWeights, Weights("{\"t\":" + Repeat("[", kDeep)), "expected '{'"},
      {"weights_depth_of_objects", kWeights, Weights(Repeat("{\"t\":", kDeep / 10)), "unknown"},
      {"weights_duplicate_key", kWeights,
       Weights("{\"t\":{\"dtype\":\"U8\",\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,4]}}",
               4),
       "occurs twice"},
      {"weights_overlap", kWeights,
       Weights("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
               "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
               6),
       "inside the tensor before"},
      {"weights_hole", kWeights, Weights(OneTensor("2", "2,6"), 6), "hole"},
      {"weights_offset_negative", kWeights, Weights(OneTensor("2", "-4,0"), 4), "negative"},
      {"weights_offset_2_64", kWeights, Weights(OneTensor("2", "0,18446744073709551616"), 4),
       "63 bits"},
      {"weights_product_overflows", kWeights, Weights(OneTensor("4294967296,4294967296", "0,0")),
       "63 bits"},
      {"weights_product_wraps", kWeights, Weights(OneTensor("4611686018427387904,4,2", "0,0")),
       "63 bits"},
      {"weights_rank_100000", kWeights, Weights(OneTensor(Repeat("1,", 100'000) + "1", "0,2"), 2),
       "more than 32 dimensions"},
      {"weights_name_not_utf8", kWeights, Weights("{\"\xff\":1}"), "not UTF-8"},
      {"weights_name_with_escape", kWeights,
       Weights(
           "{\"\\u001b]0;owned\\u0007\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"),
       "control character"},
      {"weights_name_with_nul", kWeights, Weights("{\"a\\u0000\":1}"), "control character"},
      {"weights_1e6_tensors", kWeights, Weights(EmptyTensors(1'000'000)), "200000", "", 0, 65, 0.2},
      {"weights_polyglot_tail", kWeights, Weights(OneTensor("2", "0,4"), 4) + "PK\x05\x06",
       "but the file has"},
      {"weights_nothing_but_a_stranger", kWeights, Weights(OneTensor("2", "0,4"), 4),
       "model.embed_tokens.weight"},
  };
}

std::vector<Attack> FolderAttacks() {
  const auto index = [](const std::string& shard) {
    return absl::StrCat("{\"weight_map\":{\"t\":\"", shard, "\"}}");
  };
  return {
      {"index_parent", kIndex, index("../base/model.safetensors"), "only plain file names"},
      {"index_absolute", kIndex, index("/etc/shadow"), "only plain file names"},
      {"index_backslash", kIndex, index("..\\\\m.safetensors"), "only plain file names"},
      {"index_nul", kIndex, index("model.safetensors\\u0000.txt"), "only plain file names"},
      {"index_folder", kIndex, index(".."), "only plain file names"},
      {"index_escape", kIndex, index("\\u001b[2Jx/y"), "\\x1b[2Jx/y"},
      {"index_number", kIndex, "{\"weight_map\":{\"t\":7}}", "weight_map"},
      {"index_list", kIndex, "{\"weight_map\":[]}", "weight_map"},
      {"index_depth", kIndex, Repeat("{\"a\":", kDeep), "nested deeper"},
      {"index_16_gb", kIndex, "{}", "bytes", "", int64_t{16} << 30},
      {"config_depth", kConfig, Repeat("[", kDeep), "nested deeper than 64 levels"},
      {"config_4_gb", kConfig, "{", "bytes", "", int64_t{4} << 30},
      {"config_duplicate_key", kConfig, "{\"hidden_size\":1,\"hidden_size\":2}", "occurs twice"},
      {"config_not_utf8", kConfig, "{\"model_type\":\"\xc0\xaf\"}", "JSON"},
      {"config_an_array", kConfig, "[]", "config.json"},
      {"config_no_heads", kConfig, "\"num_attention_heads\": 0", "num_attention_heads",
       "\"num_attention_heads\": 4"},
      {"config_negative_size", kConfig, "\"hidden_size\": -32", "hidden_size",
       "\"hidden_size\": 32"},
      {"config_size_2_62", kConfig, "\"intermediate_size\": 4611686018427387904",
       "intermediate_size", "\"intermediate_size\": 48"},
      {"config_1e9_layers", kConfig, "\"num_hidden_layers\": 1000000000", "num_hidden_layers",
       "\"num_hidden_layers\": 2"},
      {"config_kv_heads", kConfig, "\"num_key_value_heads\": 3", "num_key_value_heads",
       "\"num_key_value_heads\": 2"},
      {"config_huge_number", kConfig, "\"rms_norm_eps\": 1e999", "config.json",
       "\"rms_norm_eps\": 1e-05"},
      {"config_rope_theta_0", kConfig, "\"rope_theta\": 0", "rope_theta",
       "\"rope_theta\": 10000.0"},
      {"config_eos_outside", kConfig, "\"eos_token_id\": 272", "eos_token_id",
       "\"eos_token_id\": 258"},
  };
}

std::vector<Attack> TextAttacks() {
  return {
      {"tokenizer_depth", kTokenizer, Repeat("{\"a\":", kDeep), "nested deeper"},
      {"tokenizer_8_gb", kTokenizer, "{", "bytes", "", int64_t{8} << 30},
      {"tokenizer_not_utf8", kTokenizer, "{\"\xff\": 1}", "tokenizer.json"},
      {"tokenizer_id_2_40", kTokenizer, "\"qz\":1099511627776", "model.vocab[\"qz\"]",
       "\"qz\":256"},
      {"tokenizer_id_negative", kTokenizer, "\"qz\":-1", "model.vocab[\"qz\"]", "\"qz\":256"},
      {"tokenizer_id_twice", kTokenizer, "\"qz\":255", "255", "\"qz\":256"},
      {"tokenizer_merge_of_strangers", kTokenizer, "\"merges\":[[\"strange\",\"r\"],", "merges",
       "\"merges\":["},
      {"data_depth", kData, Repeat("{\"prompt\":", kDeep), "data.jsonl:1"},
      {"data_line_of_256_mb", kData, "{", "data.jsonl:1", "", int64_t{256} << 20},
      {"data_utf16", kData, std::string("\xff\xfe{\0\"\0", 6), "data.jsonl:1"},
      {"data_nul", kData, std::string("{\"prompt\": \"a\0b\"}", 17), "data.jsonl:1"},
      {"data_duplicate_key", kData, "{\"prompt\":\"a\",\"prompt\":\"b\",\"completion\":\"c\"}",
       "occurs twice"},
      {"job_depth", kJob, Repeat("training {", 100'000), "job.textproto", "", 0, 64},
      {"job_of_2_mb", kJob, std::string(2 << 20, '#'), "job.textproto", "", 0, 64},
      {"job_binary", kJob, std::string("\x00\x01\xff\xfe", 4), "job.textproto", "", 0, 64},
      {"job_problems_100000", kJob, Repeat("x: 1\n", 100'000), "and 150 more", "", 0, 64,
       kCpuSeconds, 8},
      {"job_pattern_that_never_ends", kJob, "lora { target_modules_regex: '(.*.*)*(.*.*)*x' }",
       "target_modules_regex", "", 0, 64},
  };
}

class AttackTest : public Workplace, public testing::WithParamInterface<Attack> {
 protected:
  void Apply(const Attack& attack) {
    held_ = attack.memory_per_byte * int64_t(attack.contents.size());
    if (attack.file == kJob) {
      job_ = attack.contents;
      return;
    }
    if (attack.file == kIndex) fs::remove(Path(kWeights));
    if (attack.from.empty()) {
      Write(attack.file, attack.contents);
    } else {
      Edit(attack.file, attack.from, attack.contents);
    }
    if (attack.sparse > 0) fs::resize_file(Path(attack.file), uintmax_t(attack.sparse));
  }

  // The least time of three counts: the machine has other work.
  void ExpectHarmless(int code, const std::string& word, double cpu_seconds,
                      const std::string& more = "") const {
    WriteJob();
    std::vector<std::string> words = {"train", Path("job.textproto")};
    if (!more.empty()) words.insert(words.end(), {"--set", more});
    CommandOptions options{.address_space = kAddressSpace};
    // Sanitizers are preloaded themselves.
    if (!kSanitized) {
      options.launcher = {"env", absl::StrCat("LD_PRELOAD=", AllocationShim()),
                          absl::StrCat("QLORA_LARGEST_ALLOCATION=", Path("largest"))};
    }
    CommandResult result;
    double least = 1e9;
    for (int i = 0; i < 3 && least > cpu_seconds; ++i) {
      result = RunEngine(words, options);
      least = std::min(least, result.cpu_seconds);
    }
    EXPECT_EQ(result.exit_code, code) << result.out << result.err.substr(0, 2000);
    EXPECT_EQ(result.signal, 0);
    EXPECT_THAT(result.err.substr(0, 20000), testing::HasSubstr(word));
    EXPECT_LT(result.err.size(), 20000u);
    // A name from the file must not give orders to the terminal.
    for (const char c : result.err) EXPECT_TRUE(c == '\n' || static_cast<unsigned char>(c) >= 32);
    if (!kSanitized) {
      EXPECT_LT(least, cpu_seconds);
      EXPECT_LE(std::stoll(Read("largest")), kLargestAllocation + held_);
    }
  }

 private:
  int64_t held_ = 0;  // bytes that may be allocated for what the file really holds
};

TEST_P(AttackTest, IsRefused) {
  Apply(GetParam());
  ExpectHarmless(GetParam().code, GetParam().message, GetParam().cpu_seconds);
  EXPECT_FALSE(fs::exists(Path("out")));
}

std::string NameOf(const testing::TestParamInfo<Attack>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Weights, AttackTest, testing::ValuesIn(WeightAttacks()), NameOf);
INSTANTIATE_TEST_SUITE_P(Folder, AttackTest, testing::ValuesIn(FolderAttacks()), NameOf);
INSTANTIATE_TEST_SUITE_P(Text, AttackTest, testing::ValuesIn(TextAttacks()), NameOf);

// Checkpoints and adapters come from strangers too.
class ResultAttackTest : public AttackTest {
 protected:
  void SetUp() override {
    const CommandResult result = Run("train");
    ASSERT_EQ(result.exit_code, 0) << result.err;
  }
  // In every checkpoint, so that there is none to fall back on.
  void ForgeManifests(const std::function<void(proto::FolderManifest*)>& change) const {
    for (const char* step : {"1", "2", "3"}) {
      const std::string folder = Path(absl::StrCat("out/checkpoint-", step));
      auto manifest = engine::ReadManifest(engine::Env::Default(), folder);
      ASSERT_TRUE(manifest.ok()) << manifest.status();
      change(&*manifest);
      Write(absl::StrCat("out/checkpoint-", step, "/manifest.pb"),
            engine::EncodeManifest(*manifest));
    }
  }
  std::string Init() const { return "lora.init_from=" + Path("first"); }
  void ExpectKept(int code, const std::string& word) const {
    WriteJob();
    const auto before = Output();
    ExpectHarmless(code, word, kLoadSeconds);
    EXPECT_TRUE(Output() == before);
  }
};

TEST_F(ResultAttackTest, ManifestThatLeavesTheFolder) {
  ForgeManifests([](auto* m) { m->mutable_files(0)->set_name("../../base/config.json"); });
  ExpectKept(65, "is no name for a listed file");
}

TEST_F(ResultAttackTest, ManifestOfSizesThatLie) {
  ForgeManifests([](auto* m) { m->mutable_files(0)->set_size(uint64_t{1} << 62); });
  ExpectKept(65, "chunk checksums for 4611686018427387904 bytes");
}

TEST_F(ResultAttackTest, ManifestOfAHugeChunk) {
  ForgeManifests([](auto* m) { m->set_chunk_bytes(uint64_t{1} << 40); });
  ExpectKept(65, "chunk_bytes is 1099511627776");
}

TEST_F(ResultAttackTest, ManifestThatIsHuge) {
  for (const char* step : {"1", "2", "3"}) {
    fs::resize_file(Path(absl::StrCat("out/checkpoint-", step, "/manifest.pb")),
                    uintmax_t{1} << 36);
  }
  ExpectHarmless(65, "manifest.pb", kLoadSeconds);
}

TEST_F(ResultAttackTest, AdapterWithALyingHeader) {
  fs::rename(Path("out"), Path("first"));
  Write("first/adapter_model.safetensors", Weights("{}", 0, uint64_t{1} << 62));
  ExpectHarmless(65, "lora.init_from: ", kLoadSeconds, Init());
}

TEST_F(ResultAttackTest, AdapterOfAHugeRank) {
  fs::rename(Path("out"), Path("first"));
  Edit("first/adapter_config.json", "\"r\": 4", "\"r\": 1099511627776");
  ExpectHarmless(65, "first/adapter_config.json", kLoadSeconds, Init());
  Edit("first/adapter_config.json", "\"r\": 1099511627776", "\"r\": 1024");
  ExpectHarmless(65, "first/adapter_model.safetensors", kLoadSeconds, Init());
}

TEST_F(ResultAttackTest, AdapterThatHoldsANan) {
  fs::rename(Path("out"), Path("first"));
  std::string weights = Read("first/adapter_model.safetensors");
  weights.replace(weights.size() - 2, 2, "\xc0\x7f", 2);
  Write("first/adapter_model.safetensors", weights);
  ExpectHarmless(65, "holds NaN or infinity", kLoadSeconds, Init());
  EXPECT_FALSE(fs::exists(Path("out/adapter_model.safetensors")));
}

TEST_F(ResultAttackTest, AdapterThatIsAPickle) {
  fs::rename(Path("out"), Path("first"));
  fs::rename(Path("first/adapter_model.safetensors"), Path("first/adapter_model.bin"));
  ExpectHarmless(65, "first/adapter_model.safetensors", kLoadSeconds, Init());
}

}  // namespace
}  // namespace qlora::tests
