// A tokenizer whose ids are bytes, so that a test can write the ids it expects as text.
#ifndef QLORA_TESTS_ENGINE_DATA_BYTE_TOKENIZER_H_
#define QLORA_TESTS_ENGINE_DATA_BYTE_TOKENIZER_H_

#include <cstdint>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/io/utf8.h"
#include "engine/text/tokenizer.h"
#include "gtest/gtest.h"
#include "proto/job.pb.h"
#include "proto/job_defaults.h"

namespace qlora::engine {

// Ids 0 to 255 are bytes; then one merge, "qz" as one token; then control tokens.
inline constexpr int32_t kQz = 256, kBos = 257, kEos = 258, kHeader = 259, kHeaderEnd = 260,
                         kEot = 261, kImStart = 262, kImEnd = 263;

struct ByteTokenizerOptions {
  bool llama3 = true, chatml = true;  // has the control tokens of
  bool template_bos = true, template_eos = false;
  bool names_eos = true;
};

// The texts of tokenizer.json and tokenizer_config.json.
inline std::pair<std::string, std::string> ByteTokenizerFiles(
    const ByteTokenizerOptions& options = {}) {
  using nlohmann::json;
  json vocabulary = json::object();
  int others = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
    std::string letter;
    AppendUtf8(static_cast<uint32_t>(printable ? byte : 256 + others), &letter);
    others += !printable;
    vocabulary[letter] = byte;
  }
  vocabulary["qz"] = kQz;
  json added = json::array();
  const auto add = [&](const char* content, int id) {
    added.push_back({{"id", id},
                     {"content", content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  };
  add("<|begin_of_text|>", kBos);
  add("<|end_of_text|>", kEos);
  // Added tokens are numbered without gaps, so another one stands in for each that is left out.
  add(options.llama3 ? "<|start_header_id|>" : "<|reserved_0|>", kHeader);
  add(options.llama3 ? "<|end_header_id|>" : "<|reserved_1|>", kHeaderEnd);
  add(options.llama3 ? "<|eot_id|>" : "<|reserved_2|>", kEot);
  add(options.chatml ? "<|im_start|>" : "<|reserved_3|>", kImStart);
  add(options.chatml ? "<|im_end|>" : "<|reserved_4|>", kImEnd);
  json single = json::array();
  json special = json::object();
  const auto place = [&](const char* content, int id) {
    single.push_back({{"SpecialToken", {{"id", content}, {"type_id", 0}}}});
    special[content] = {{"id", content}, {"ids", {id}}, {"tokens", {content}}};
  };
  if (options.template_bos) place("<|begin_of_text|>", kBos);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (options.template_eos) place("<|end_of_text|>", kEos);
  const json file = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", added},
                     {"normalizer", nullptr},
                     {"pre_tokenizer",
                      {{"type", "ByteLevel"},
                       {"add_prefix_space", false},
                       {"trim_offsets", true},
                       {"use_regex", true}}},
                     {"post_processor",
                      {{"type", "TemplateProcessing"},
                       {"single", single},
                       {"pair", json::array()},
                       {"special_tokens", special}}},
                     {"decoder",
                      {{"type", "ByteLevel"},
                       {"add_prefix_space", false},
                       {"trim_offsets", true},
                       {"use_regex", true}}},
                     {"model",
                      {{"type", "BPE"},
                       {"dropout", nullptr},
                       {"unk_token", nullptr},
                       {"continuing_subword_prefix", nullptr},
                       {"end_of_word_suffix", nullptr},
                       {"fuse_unk", false},
                       {"byte_fallback", false},
                       {"vocab", vocabulary},
                       {"merges", {"q z"}}}}};
  json config = {{"bos_token", "<|begin_of_text|>"}};
  if (options.names_eos) {
    config["eos_token"] = "<|end_of_text|>";
  }
  return {file.dump(), config.dump()};
}

inline std::unique_ptr<Tokenizer> ByteTokenizer(const ByteTokenizerOptions& options = {}) {
  const auto [file, config] = ByteTokenizerFiles(options);
  auto tokenizer = Tokenizer::FromJson(file, config);
  if (!tokenizer.ok()) {
    ADD_FAILURE() << tokenizer.status();
    return nullptr;
  }
  return *std::move(tokenizer);
}

// Ids as text: bytes as they are, control tokens as one capital in brackets.
inline std::string Show(const std::vector<int32_t>& ids) {
  const char* const names[] = {"[qz]", "[BOS]", "[EOS]", "[H]", "[/H]", "[EOT]", "[IM]", "[/IM]"};
  std::string text;
  for (const int32_t id : ids) {
    if (id < 256) {
      text += static_cast<char>(id);
    } else {
      absl::StrAppend(&text, names[id - 256]);
    }
  }
  return text;
}

// Only the trained ids, '.' for each other.
inline std::string ShowTrained(const std::vector<int32_t>& ids,
                               const std::vector<uint8_t>& trained) {
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) text += trained[i] ? Show({ids[i]}) : ".";
  return text;
}

// Data settings with their defaults.
inline proto::Data DefaultData() { return proto::WithDefaults(proto::Job()).data(); }

// A file in the test's own folder.
inline std::string WriteTemp(const std::string& name, absl::string_view contents) {
  const auto* info = testing::UnitTest::GetInstance()->current_test_info();
  const std::string path =
      absl::StrCat(testing::TempDir(), info->test_suite_name(), "_", info->name(), "_", name);
  std::ofstream(path, std::ios::binary) << contents;
  return path;
}

}  // namespace qlora::engine

#endif  // QLORA_TESTS_ENGINE_DATA_BYTE_TOKENIZER_H_
