// The header's parser. Its JSON has a fixed shape, so there is no recursion to exhaust: whatever
// doesn't fit the shape at a byte is refused at that byte. Two passes: the first only checks and
// counts, keeping one tensor at a time; the second, over text known to be good, builds the list.
#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/io/safetensors.h"
#include "engine/io/safetensors_writer.h"
#include "engine/io/utf8.h"

namespace qlora::engine {
namespace {

// Bytes of a tensor's name as it stands in the header.
constexpr size_t kMaxName = 4096;
constexpr int64_t kMaxMetadataEntries = 10'000;
// Text of the file that a message may quote.
constexpr size_t kMaxQuoted = 80;

std::string Quoted(absl::string_view text) {
  return absl::StrCat("\"", absl::Utf8SafeCEscape(text.substr(0, kMaxQuoted)),
                      text.size() > kMaxQuoted ? "...\"" : "\"");
}

class Parser {
 public:
  // `text` is the JSON, valid UTF-8. Offsets count from `data_bytes`, the size of the data after
  // it.
  Parser(absl::string_view text, int64_t data_bytes, int64_t data_start, absl::string_view path,
         SafetensorsHeader* out)
      : text_(text), data_bytes_(data_bytes), data_start_(data_start), path_(path), out_(out) {}

  absl::Status Run() {
    Document();
    return std::move(error_);
  }

 private:
  bool Fail(absl::string_view what) { return FailAt(at_, what); }
  bool FailAt(size_t at, absl::string_view what) {
    error_ = absl::InvalidArgumentError(
        absl::StrCat(path_, ": bad safetensors header at byte ", 8 + at, ": ", what));
    return false;
  }
  bool FailTensor(absl::string_view name, absl::string_view what) {
    error_ = absl::InvalidArgumentError(
        absl::StrCat(path_, ": bad safetensors header: tensor ", Quoted(name), ": ", what));
    return false;
  }

  void SkipSpace() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
      ++at_;
    }
  }
  // The next byte that is not space, 0 at the end (a NUL in the text is refused wherever it
  // stands).
  char Peek() {
    SkipSpace();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool Expect(char c) {
    if (Peek() == c && at_ < text_.size()) {
      ++at_;
      return true;
    }
    return Fail(absl::StrCat("expected '", std::string(1, c), "', found ", Found()));
  }
  std::string Found() const {
    return at_ < text_.size() ? Quoted(text_.substr(at_, 1)) : "the end of the header";
  }

  // A list "open item, item close"; `item` parses one.
  template <typename Item>
  bool List(char open, char close, const Item& item) {
    if (!Expect(open)) return false;
    if (Peek() == close) {
      ++at_;
      return true;
    }
    for (;;) {
      if (!item()) return false;
      const char c = Peek();
      if (c == ',') {
        ++at_;
        continue;
      }
      return Expect(close);
    }
  }

  bool HexDigits(uint32_t* value) {
    *value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = at_ < text_.size() ? text_[at_] : '\0';
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return Fail("\\u needs four hex digits");
      *value = *value * 16 + static_cast<uint32_t>(digit);
    }
    return true;
  }

  // After the backslash.
  bool Escape(std::string* out) {
    const char c = at_ < text_.size() ? text_[at_++] : '\0';
    switch (c) {
      case '"':
      case '\\':
      case '/':
        out->push_back(c);
        return true;
      case 'b':
        out->push_back('\b');
        return true;
      case 'f':
        out->push_back('\f');
        return true;
      case 'n':
        out->push_back('\n');
        return true;
      case 'r':
        out->push_back('\r');
        return true;
      case 't':
        out->push_back('\t');
        return true;
      case 'u':
        break;
      default:
        return Fail("unknown escape in a string");
    }
    uint32_t code = 0;
    if (!HexDigits(&code)) return false;
    if (code >= 0xdc00 && code < 0xe000) return Fail("lone low surrogate in a string");
    if (code >= 0xd800 && code < 0xdc00) {
      uint32_t low = 0;
      if (text_.substr(at_, 2) != "\\u") return Fail("lone high surrogate in a string");
      at_ += 2;
      if (!HexDigits(&low)) return false;
      if (low < 0xdc00 || low >= 0xe000) return Fail("lone high surrogate in a string");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    AppendUtf8(code, out);
    return true;
  }

  // A string of at most `limit` bytes as written; decoded into `out` unless null.
  bool String(std::string* out, size_t limit) {
    if (!Expect('"')) return false;
    const size_t start = at_;
    size_t end = start;
    bool escaped = false;
    for (;; ++end) {
      if (end >= text_.size()) return FailAt(start, "a string without an end");
      if (end - start > limit) {
        return FailAt(start, absl::StrCat("a string longer than ", limit, " bytes"));
      }
      if (text_[end] == '"') break;
      if (static_cast<unsigned char>(text_[end]) < 0x20) {
        return FailAt(end, "a control character in a string");
      }
      if (text_[end] == '\\') {
        escaped = true;
        if (++end >= text_.size()) return FailAt(start, "a string without an end");
      }
    }
    if (!escaped) {
      if (out != nullptr) *out = std::string(text_.substr(start, end - start));
      at_ = end + 1;
      return true;
    }
    std::string scratch;
    std::string* decoded = out != nullptr ? out : &scratch;
    decoded->clear();
    while (at_ < end) {
      if (text_[at_] != '\\') {
        decoded->push_back(text_[at_++]);
        continue;
      }
      ++at_;
      if (!Escape(decoded)) return false;
      if (out == nullptr) decoded->clear();
    }
    // An escape can't reach past the closing quote: its own bytes were skipped two at a time above,
    // and hex digits are never quotes.
    at_ = end + 1;
    return true;
  }

  // A whole number from 0 to int64's largest; no sign, fraction, exponent or leading zero.
  bool Integer(int64_t* value) {
    const char first = Peek();
    if (first == '-') return Fail("a negative number");
    if (first < '0' || first > '9') return Fail(absl::StrCat("expected a number, found ", Found()));
    const size_t start = at_;
    *value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      if (__builtin_mul_overflow(*value, 10, value) ||
          __builtin_add_overflow(*value, text_[at_] - '0', value)) {
        return FailAt(start, "a number beyond 63 bits");
      }
    }
    if (first == '0' && at_ - start > 1) return FailAt(start, "a number with a leading zero");
    if (at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E')) {
      return FailAt(start, "a number that is not whole");
    }
    return true;
  }

  bool Metadata() {
    if (seen_metadata_) return Fail("\"__metadata__\" occurs twice");
    seen_metadata_ = true;
    int64_t count = 0;
    return List('{', '}', [&] {
      if (++count > kMaxMetadataEntries) {
        return Fail(absl::StrCat("more than ", kMaxMetadataEntries, " metadata entries"));
      }
      std::string key;
      if (!String(&key, kMaxName) || !Expect(':')) return false;
      std::string value;
      if (!String(out_ != nullptr ? &value : nullptr, text_.size())) return false;
      if (out_ == nullptr) return true;
      if (!out_->metadata.emplace(key, std::move(value)).second) {
        return Fail(absl::StrCat("metadata key ", Quoted(key), " occurs twice"));
      }
      return true;
    });
  }

  bool Shape(TensorInfo* tensor) {
    return List('[', ']', [&] {
      if (static_cast<int64_t>(tensor->shape.size()) == kMaxTensorRank) {
        return Fail(absl::StrCat("a shape of more than ", kMaxTensorRank, " dimensions"));
      }
      int64_t extent = 0;
      if (!Integer(&extent)) return false;
      tensor->shape.push_back(extent);
      return true;
    });
  }

  bool Tensor(std::string name) {
    if (name.empty()) return Fail("a tensor without a name");
    for (char c : name) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
        return Fail(absl::StrCat("control character in tensor name ", Quoted(name)));
      }
    }
    TensorInfo tensor;
    tensor.name = std::move(name);
    bool has_shape = false;
    std::optional<Dtype> dtype;
    int64_t offsets[2];
    int offset_count = 0;
    bool has_offsets = false;
    const bool parsed = List('{', '}', [&] {
      std::string key;
      if (!String(&key, kMaxName) || !Expect(':')) return false;
      if (key == "dtype" && !dtype.has_value()) {
        std::string value;
        if (!String(&value, kMaxName)) return false;
        dtype = DtypeFromName(value);
        return dtype.has_value() ||
               FailTensor(tensor.name, absl::StrCat("unknown dtype ", Quoted(value)));
      }
      if (key == "shape" && !has_shape) {
        has_shape = true;
        return Shape(&tensor);
      }
      if (key == "data_offsets" && !has_offsets) {
        has_offsets = true;
        return List('[', ']', [&] {
          if (offset_count == 2) return Fail("data_offsets holds more than two numbers");
          return Integer(&offsets[offset_count++]);
        });
      }
      return FailTensor(tensor.name, absl::StrCat("key ", Quoted(key),
                                                  " is unknown or occurs twice (allowed once each: "
                                                  "dtype, shape, data_offsets)"));
    });
    if (!parsed) return false;
    if (!dtype.has_value()) return FailTensor(tensor.name, "has no dtype");
    if (!has_shape) return FailTensor(tensor.name, "has no shape");
    if (offset_count != 2) return FailTensor(tensor.name, "needs two data_offsets");
    tensor.dtype = *dtype;
    if (offsets[0] > offsets[1]) {
      return FailTensor(tensor.name, absl::StrCat("data_offsets run backwards: ", offsets[0],
                                                  " to ", offsets[1]));
    }
    if (offsets[1] > data_bytes_) {
      return FailTensor(tensor.name,
                        absl::StrCat("data_offsets end at ", offsets[1], ", but the file holds ",
                                     data_bytes_, " bytes of data"));
    }
    const auto bytes = TensorBytes(tensor.dtype, tensor.shape, Quoted(tensor.name));
    if (!bytes.ok()) {
      error_ = absl::InvalidArgumentError(
          absl::StrCat(path_, ": bad safetensors header: ", bytes.status().message()));
      return false;
    }
    if (*bytes != offsets[1] - offsets[0]) {
      return FailTensor(tensor.name,
                        absl::StrCat(tensor.Describe(), " takes ", *bytes,
                                     " bytes, but data_offsets span ", offsets[1] - offsets[0]));
    }
    if (out_ != nullptr) {
      tensor.offset = data_start_ + offsets[0];
      tensor.bytes = *bytes;
      out_->tensors.push_back(std::move(tensor));
    }
    return true;
  }

  bool Document() {
    int64_t count = 0;
    const bool parsed = List('{', '}', [&] {
      std::string key;
      if (!String(&key, kMaxName) || !Expect(':')) return false;
      if (key == "__metadata__") return Metadata();
      if (++count > kMaxSafetensorsTensors) {
        return Fail(absl::StrCat("more than ", kMaxSafetensorsTensors, " tensors"));
      }
      return Tensor(std::move(key));
    });
    if (!parsed) return false;
    SkipSpace();
    if (at_ != text_.size()) return Fail(absl::StrCat("text after the header: ", Found()));
    if (out_ == nullptr) return true;
    out_->data_start = data_start_;
    return true;
  }

  absl::string_view text_;
  int64_t data_bytes_;
  int64_t data_start_;
  absl::string_view path_;
  SafetensorsHeader* out_;  // null in the first pass
  size_t at_ = 0;
  bool seen_metadata_ = false;
  absl::Status error_;
};

// Sorts by place and checks that the tensors tile the data, and that no name occurs twice.
absl::Status CheckTiling(SafetensorsHeader* header, int64_t file_size, absl::string_view path) {
  std::vector<TensorInfo>& tensors = header->tensors;
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    // An empty tensor shares its offset with the next one and comes before it.
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  int64_t end = header->data_start;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.offset != end) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": bad safetensors header: tensor ", Quoted(tensor.name),
                       " starts at ", tensor.offset - header->data_start, ", ",
                       tensor.offset < end ? "inside the tensor before it"
                                           : "leaving a hole after the one before it",
                       ", which ends at ", end - header->data_start));
    }
    end += tensor.bytes;
  }
  if (end != file_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the tensors end at byte ", end, ", but the file has ", file_size));
  }
  std::vector<const std::string*> names;
  names.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors) names.push_back(&tensor.name);
  std::sort(names.begin(), names.end(),
            [](const std::string* a, const std::string* b) { return *a < *b; });
  for (size_t i = 1; i < names.size(); ++i) {
    if (*names[i] == *names[i - 1]) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": bad safetensors header: tensor ",
                                                     Quoted(*names[i]), " occurs twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::Span<const uint8_t> prefix,
                                                         int64_t file_size,
                                                         absl::string_view path) {
  if (file_size < 8 || prefix.size() < 8) {
    return absl::DataLossError(absl::StrCat(path, ": ", file_size,
                                            " bytes are too short for a safetensors file (needs 8 "
                                            "for the header's length)"));
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | prefix[i];
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeader)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a safetensors file: the header claims ", length,
                     " bytes, at most ", kMaxSafetensorsHeader, " are allowed"));
  }
  const int64_t data_start = 8 + static_cast<int64_t>(length);
  if (data_start > file_size || static_cast<uint64_t>(data_start) > prefix.size()) {
    return absl::DataLossError(absl::StrCat(path, ": cut short: the header ends at byte ",
                                            data_start, ", the file at ", file_size));
  }
  const absl::string_view text(reinterpret_cast<const char*>(prefix.data()) + 8, length);
  if (text.empty() || text[0] != '{') {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a safetensors file: the header does not begin with '{'"));
  }
  if (const size_t bad = FirstInvalidUtf8(text); bad != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": bad safetensors header at byte ", 8 + bad, ": not UTF-8"));
  }
  const int64_t data_bytes = file_size - data_start;
  absl::Status checked = Parser(text, data_bytes, data_start, path, nullptr).Run();
  if (!checked.ok()) return checked;
  SafetensorsHeader header;
  absl::Status built = Parser(text, data_bytes, data_start, path, &header).Run();
  if (!built.ok()) return built;
  if (absl::Status status = CheckTiling(&header, file_size, path); !status.ok()) return status;
  return header;
}

}  // namespace qlora::engine
