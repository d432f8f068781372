#include "engine/text/tokenizer_file.h"

#include <cstddef>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 32;
// Bound on the values outside vocab and merges: added tokens take some ten each.
constexpr size_t kMaxSmallValues = 4000000;

absl::Status Bad(absl::string_view path, absl::string_view message) {
  return proto::BadDataError(absl::StrCat("tokenizer.json: ", path, ": ", message));
}

// Receives nlohmann's events. Builds `root` from all of them but those below model.vocab and
// model.merges.
class Reader : public nlohmann::json_sax<json> {
 public:
  explicit Reader(TokenizerFile& file) : file_(file) {}

  const absl::Status& status() const { return status_; }

  bool null() override { return Value(json(nullptr)); }
  bool boolean(bool value) override { return Value(json(value)); }
  bool number_float(double value, const std::string&) override { return Value(json(value)); }
  bool binary(binary_t&) override { return false; }
  bool number_integer(int64_t value) override {
    if (section_ == Section::kVocab) return Fail(VocabPath(), "a negative id");
    return Value(json(value));
  }
  bool number_unsigned(uint64_t value) override {
    if (section_ != Section::kVocab) return Value(json(value));
    if (value > static_cast<uint64_t>(kMaxTokenId)) {
      return Fail(VocabPath(),
                  absl::StrCat("id ", value, "; the largest allowed is ", kMaxTokenId));
    }
    if (!file_.vocab.try_emplace(vocab_key_, static_cast<int32_t>(value)).second) {
      return Fail(VocabPath(), "the token appears twice");
    }
    return true;
  }
  bool string(std::string& value) override {
    switch (section_) {
      case Section::kNone:
        return Value(json(std::move(value)));
      case Section::kVocab:
        return Fail(VocabPath(), "expected an id");
      case Section::kMerges:
        return OldMerge(value);
      case Section::kMerge:
        merge_.push_back(std::move(value));
        return true;
    }
    return false;
  }
  bool start_object(size_t) override {
    if (section_ == Section::kVocab) return Fail(VocabPath(), "expected an id");
    if (section_ != Section::kNone) return Fail(MergePath(), "expected a merge");
    if (AtModelField("vocab")) {
      Place(json(true));  // keeps the place: a second one is found
      section_ = Section::kVocab;
      return Count();
    }
    return Open(json::object());
  }
  bool key(std::string& value) override {
    if (section_ == Section::kVocab) {
      vocab_key_ = std::move(value);
    } else {
      key_ = std::move(value);
      if (stack_.back()->contains(key_)) return Fail(key_, "the field appears twice");
    }
    return true;
  }
  bool end_object() override {
    if (section_ == Section::kVocab) {
      section_ = Section::kNone;
      return true;
    }
    stack_.pop_back();
    return true;
  }
  bool start_array(size_t) override {
    if (section_ == Section::kVocab) return Fail(VocabPath(), "expected an id");
    if (section_ == Section::kMerge) return Fail(MergePath(), "expected a token");
    if (section_ == Section::kMerges) {
      section_ = Section::kMerge;
      merge_.clear();
      return true;
    }
    if (AtModelField("merges")) {
      Place(json(true));
      section_ = Section::kMerges;
      return Count();
    }
    return Open(json::array());
  }
  bool end_array() override {
    if (section_ == Section::kMerge) {
      section_ = Section::kMerges;
      if (merge_.size() != 2) return Fail(MergePath(), "a merge has two tokens");
      file_.merges.emplace_back(std::move(merge_[0]), std::move(merge_[1]));
      return true;
    }
    if (section_ == Section::kMerges) {
      section_ = Section::kNone;
      return true;
    }
    stack_.pop_back();
    return true;
  }
  bool parse_error(size_t position, const std::string&, const json::exception& error) override {
    // Without the library's "[json.exception.parse_error.101] ".
    absl::string_view what = error.what();
    const size_t tag = what.find("] ");
    if (tag != absl::string_view::npos) what.remove_prefix(tag + 2);
    return Fail(absl::StrCat("byte ", position), absl::StrCat("not valid JSON: ", what));
  }

 private:
  enum class Section { kNone, kVocab, kMerges, kMerge };

  bool Fail(absl::string_view path, absl::string_view message) {
    if (status_.ok()) status_ = Bad(path, message);
    return false;
  }
  std::string VocabPath() const { return absl::StrCat("model.vocab[\"", vocab_key_, "\"]"); }
  std::string MergePath() const { return absl::StrCat("model.merges[", file_.merges.size(), "]"); }

  // Whether the value that begins now is model.<name>.
  bool AtModelField(absl::string_view name) const {
    return stack_.size() == 2 && in_model_ && key_ == name;
  }

  // "a b"; the files' older form. The first line may be a version comment.
  bool OldMerge(const std::string& line) {
    if (file_.merges.empty() && absl::StartsWith(line, "#version")) return true;
    const size_t space = line.find(' ');
    if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
      return Fail(MergePath(), absl::StrCat("`", line, "` is not two tokens with a space between"));
    }
    file_.merges.emplace_back(line.substr(0, space), line.substr(space + 1));
    return true;
  }

  bool Count() {
    if (++values_ > kMaxSmallValues) {
      return Fail(key_, absl::StrCat("more than ", kMaxSmallValues, " values"));
    }
    return true;
  }

  // Puts a value in its place; returns where it lies.
  json* Place(json value) {
    if (stack_.empty()) {
      file_.root = std::move(value);
      return &file_.root;
    }
    json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }

  bool Value(json value) {
    if (section_ == Section::kVocab) return Fail(VocabPath(), "expected an id");
    if (section_ != Section::kNone) return Fail(MergePath(), "expected a merge of two strings");
    Place(std::move(value));
    return Count();
  }

  bool Open(json value) {
    if (stack_.size() == kMaxDepth) {
      return Fail(key_, absl::StrCat("nested deeper than ", kMaxDepth, " levels"));
    }
    if (stack_.size() == 1) in_model_ = key_ == "model";
    stack_.push_back(Place(std::move(value)));
    return Count();
  }

  TokenizerFile& file_;
  absl::Status status_;
  // The containers that are open. Pointers stay valid: a container is only appended to while it is
  // the last one here.
  std::vector<json*> stack_;
  std::string key_;
  bool in_model_ = false;
  Section section_ = Section::kNone;
  std::string vocab_key_;
  std::vector<std::string> merge_;
  size_t values_ = 0;
};

}  // namespace

absl::StatusOr<TokenizerFile> ParseTokenizerFile(absl::string_view text) {
  if (text.size() > static_cast<size_t>(kMaxTokenizerFileBytes)) {
    return Bad("size", absl::StrCat(text.size(), " bytes; the limit is ", kMaxTokenizerFileBytes));
  }
  TokenizerFile file;
  Reader reader(file);
  const bool complete = json::sax_parse(text.begin(), text.end(), &reader);
  if (!reader.status().ok()) return reader.status();
  if (!complete || !file.root.is_object()) return Bad("root", "expected an object");
  return file;
}

absl::StatusOr<bool> FieldReader::Bool(const char* name, bool absent) const {
  const json* const field = Find(name);
  if (field == nullptr) return absent;
  if (!field->is_boolean()) return Wrong(name, "true or false");
  return field->get<bool>();
}

absl::StatusOr<int64_t> FieldReader::Int(const char* name, int64_t absent) const {
  const json* const field = Find(name);
  if (field == nullptr) return absent;
  if (!field->is_number_integer() ||
      (field->is_number_unsigned() && field->get<uint64_t>() > INT64_MAX)) {
    return Wrong(name, "an integer");
  }
  return field->get<int64_t>();
}

absl::StatusOr<std::string> FieldReader::String(const char* name, absl::string_view absent) const {
  const json* const field = Find(name);
  if (field == nullptr) return std::string(absent);
  if (!field->is_string()) return Wrong(name, "a string");
  return field->get<std::string>();
}

absl::StatusOr<const json*> FieldReader::Array(const char* name) const {
  static const json* const empty = new json(json::array());
  const json* const field = Find(name);
  if (field == nullptr) return empty;
  if (!field->is_array()) return Wrong(name, "an array");
  return field;
}

const json* FieldReader::Find(const char* name) const {
  if (!object_.is_object()) return nullptr;
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

std::string FieldReader::PathOf(absl::string_view name) const {
  return path_.empty() ? std::string(name) : absl::StrCat(path_, ".", name);
}

absl::Status FieldReader::Wrong(absl::string_view name, absl::string_view expected) const {
  return Bad(PathOf(name), absl::StrCat("expected ", expected));
}

absl::Status NotSupported(absl::string_view path, absl::string_view what) {
  return Bad(path, absl::StrCat(what, " is not supported"));
}

absl::StatusOr<std::string> PartType(const json& part, absl::string_view path) {
  if (!part.is_object()) return Bad(path, "expected an object");
  const auto it = part.find("type");
  if (it == part.end() || !it->is_string()) return Bad(path, "no \"type\"");
  return it->get<std::string>();
}

}  // namespace qlora::engine
