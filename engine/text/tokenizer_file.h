// tokenizer.json, parsed and checked for form.
//
// The vocabulary and the merges, up to some 10^6 entries, are read straight into their tables;
// everything else is small and kept as JSON, to be understood by the parts it configures.
#ifndef QLORA_ENGINE_TEXT_TOKENIZER_FILE_H_
#define QLORA_ENGINE_TEXT_TOKENIZER_FILE_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qlora::engine {

// Bounds on what a file may hold; those of published models lie ten times below.
inline constexpr int64_t kMaxTokenizerFileBytes = int64_t{256} << 20;
inline constexpr int32_t kMaxTokenId = (1 << 24) - 1;

struct TokenizerFile {
  nlohmann::json root;  // model.vocab and model.merges are `true` here where they were read below
  absl::flat_hash_map<std::string, int32_t> vocab;
  std::vector<std::pair<std::string, std::string>> merges;
};

// DataLoss naming the field path (or, for broken JSON, the byte).
absl::StatusOr<TokenizerFile> ParseTokenizerFile(absl::string_view json);

// Fields of the configuration of one part, checked as they are read. `path` is that of `object` in
// the file; a field that is absent or null has its default.
class FieldReader {
 public:
  FieldReader(const nlohmann::json& object, std::string path) : object_(object), path_(path) {}

  absl::StatusOr<bool> Bool(const char* name, bool absent) const;
  absl::StatusOr<int64_t> Int(const char* name, int64_t absent) const;
  absl::StatusOr<std::string> String(const char* name, absl::string_view absent) const;
  // The array, empty when absent.
  absl::StatusOr<const nlohmann::json*> Array(const char* name) const;
  // The field itself, null when it is absent or null.
  const nlohmann::json* Find(const char* name) const;
  std::string PathOf(absl::string_view name) const;
  absl::Status Wrong(absl::string_view name, absl::string_view expected) const;

 private:
  const nlohmann::json& object_;
  const std::string path_;
};

// DataLoss "tokenizer.json: <path>: <what> is not supported".
absl::Status NotSupported(absl::string_view path, absl::string_view what);

// The "type" of a part's object; DataLoss where there is none.
absl::StatusOr<std::string> PartType(const nlohmann::json& part, absl::string_view path);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_TOKENIZER_FILE_H_
