#include "engine/io/json_file.h"

#include <cstddef>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace qlora::engine {
namespace {

using Json = nlohmann::json;

// Walks the text without building anything, so that depth and duplicates are refused first.
class Checker : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return Open(); }
  bool start_array(size_t) override { return Open(); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& key) override {
    if (keys_.back().insert(key).second) return true;
    error_ = absl::StrCat("key \"", key, "\" occurs twice in one object");
    return false;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without the library's
    // tag.
    std::string what = e.what();
    const size_t tag = what.find("] ");
    if (tag != std::string::npos) what = what.substr(tag + 2);
    // In a text of one line, such as a record, the byte says it.
    if (what.rfind("parse error at line 1,", 0) == 0 && what.find(": ") != std::string::npos) {
      what = what.substr(what.find(": ") + 2);
    }
    error_ = absl::StrCat("byte ", position, ": ", what);
    return false;
  }

  const std::string& error() const { return error_; }

 private:
  bool Open() {
    if (keys_.size() >= static_cast<size_t>(kMaxJsonDepth)) {
      error_ = absl::StrCat("nested deeper than ", kMaxJsonDepth, " levels");
      return false;
    }
    keys_.emplace_back();
    return true;
  }
  bool Close() {
    keys_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> keys_;
  std::string error_;
};

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view where) {
  Checker checker;
  if (!Json::sax_parse(text.begin(), text.end(), &checker)) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": not valid JSON: ", checker.error()));
  }
  Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": not valid JSON"));
  }
  return json;
}

absl::StatusOr<nlohmann::json> ReadJsonFile(Env* env, const std::string& path, int64_t max_bytes) {
  auto text = env->ReadFile(path, max_bytes);
  if (!text.ok()) return text.status();
  return ParseJson(*text, path);
}

}  // namespace qlora::engine
