// Reads the files of tests/golden/text.
#ifndef QLORA_TESTS_ENGINE_TEXT_GOLDEN_FILES_H_
#define QLORA_TESTS_ENGINE_TEXT_GOLDEN_FILES_H_

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "tests/support/paths.h"

namespace qlora::engine {

inline std::string GoldenText(const std::string& name) {
  std::ifstream file(tests::TestsDir() + "/golden/text/" + name, std::ios::binary);
  EXPECT_TRUE(file.good()) << name;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline std::vector<nlohmann::json> GoldenLines(const std::string& name) {
  const std::string text = GoldenText(name);
  std::vector<nlohmann::json> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    lines.push_back(nlohmann::json::parse(text.substr(at, end - at)));
    at = end + 1;
  }
  return lines;
}

inline std::unique_ptr<Tokenizer> GoldenTokenizer(const std::string& name) {
  auto tokenizer = Tokenizer::FromJson(GoldenText(name + ".tokenizer.json"), "");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

}  // namespace qlora::engine

#endif  // QLORA_TESTS_ENGINE_TEXT_GOLDEN_FILES_H_
