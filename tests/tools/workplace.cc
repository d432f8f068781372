#include "tests/tools/workplace.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/engine/data/byte_tokenizer.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;

constexpr char kConfig[] = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
  "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 272,
  "max_position_embeddings": 64, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "bos_token_id": 257, "eos_token_id": 258, "tie_word_embeddings": false
})";

std::string Records() {
  std::string text;
  for (const char* word : {"alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"}) {
    absl::StrAppend(&text, "{\"prompt\": \"say ", word, ": \", \"completion\": \"", word, "\"}\n");
  }
  return text;
}

TempFolder* shared = nullptr;

void WriteFile(const std::string& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary) << contents;
}

}  // namespace

void Workplace::SetUpTestSuite() {
  if (shared != nullptr) return;
  shared = new TempFolder;  // as long as the process
  const auto [tokenizer, config] = engine::ByteTokenizerFiles();
  fs::create_directory(shared->File("start"));
  WriteFile(shared->File("start/tokenizer.json"), tokenizer);
  WriteFile(shared->File("start/tokenizer_config.json"), config);
  WriteFile(shared->File("start/config.json"), kConfig);
  WriteFile(shared->File("data.jsonl"), Records());
  WriteFile(shared->File("make.textproto"),
            absl::StrCat("mode: FULL model_init { config: '", shared->File("start/config.json"),
                         "' tokenizer: '", shared->File("start"), "' } output_dir: '",
                         shared->File("base"), "' training { max_steps: 2 } data { train_file: '",
                         shared->File("data.jsonl"), "' max_length: 64 }"));
  const CommandResult made = RunEngine({"train", shared->File("make.textproto")});
  ASSERT_EQ(made.exit_code, 0) << made.out << made.err;
}

Workplace::Workplace() {
  fs::create_directory(Path("base"));
  for (const char* name :
       {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}) {
    fs::copy(shared->File(absl::StrCat("base/", name)), Path(absl::StrCat("base/", name)));
  }
  Write("data.jsonl", Records());
}

void Workplace::Write(const std::string& name, const std::string& contents) const {
  WriteFile(Path(name), contents);
}

std::string Workplace::Read(const std::string& name) const {
  std::ifstream file(Path(name), std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

void Workplace::Edit(const std::string& name, const std::string& from,
                     const std::string& to) const {
  std::string text = Read(name);
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from << " in " << name;
  Write(name, text.replace(at, from.size(), to));
}

void Workplace::WriteJob() const {
  Write("job.textproto", absl::StrCat("model: '", Path("base"), "'\noutput_dir: '", Path("out"),
                                      "'\n", job_, "data { train_file: '", Path("data.jsonl"),
                                      "' max_length: 64 ", data_, " }\n"));
}

CommandResult Workplace::Run(const std::string& command, const std::vector<std::string>& more,
                             const CommandOptions& options) const {
  WriteJob();
  std::vector<std::string> words = {command, Path("job.textproto")};
  words.insert(words.end(), more.begin(), more.end());
  return RunEngine(words, options);
}

void Workplace::ExpectCommandRefused(const std::string& command, int code,
                                     const std::vector<std::string>& words,
                                     const std::vector<std::string>& more,
                                     int64_t address_space) const {
  WriteJob();
  const auto before = TreeOf(folder_.path());
  std::vector<std::string> all = {command, Path("job.textproto")};
  all.insert(all.end(), more.begin(), more.end());
  const CommandResult result = RunEngine(all, {.address_space = address_space});
  EXPECT_EQ(result.exit_code, code) << result.out << result.err;
  EXPECT_EQ(result.signal, 0);
  for (const std::string& word : words) EXPECT_THAT(result.err, testing::HasSubstr(word));
  EXPECT_THAT(result.err, testing::HasSubstr("error: "));
  const auto after = TreeOf(folder_.path());
  for (const auto& [name, contents] : before) {
    EXPECT_TRUE(after.contains(name) && after.at(name) == contents) << name << " has changed";
  }
  for (const auto& [name, contents] : after)
    EXPECT_TRUE(before.contains(name)) << name << " is new";
}

void Workplace::ExpectRefused(int code, const std::vector<std::string>& words,
                              const std::vector<std::string>& more) const {
  ExpectCommandRefused("train", code, words, more, 0);
  const bool had_output = !Output().empty();
  if (!had_output) {
    fs::remove_all(Path("out"));
    fs::copy(shared->File("base"), Path("out"), fs::copy_options::recursive);
  }
  ExpectCommandRefused("train", code, words, more);
  if (!had_output) fs::remove_all(Path("out"));
}

}  // namespace qlora::tests
