// Reads typed values out of a JSON object and gathers every fault instead of stopping at the first.
#ifndef QLORA_ENGINE_MODEL_CONFIG_READER_H_
#define QLORA_ENGINE_MODEL_CONFIG_READER_H_

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace qlora::engine {

// A key that is absent and one that is null mean the same everywhere: the fallback, or, without
// one, a fault. After a fault a getter returns its fallback (or the nearest legal value), so that
// reading can go on; nothing read may be used unless Finish() is OK. Borrows `object`.
class ConfigReader {
 public:
  // `object` must be a JSON object, else that is the one fault. `source` names the file.
  ConfigReader(const nlohmann::json& object, std::string source);

  // True for a key that is there and not null.
  bool Has(absl::string_view key) const { return Find(key) != nullptr; }
  // The value, or null for a key that is absent or null. Keys may be a path:
  // "rope_parameters.factor".
  const nlohmann::json* Find(absl::string_view key) const;

  int64_t Int(absl::string_view key, int64_t min, int64_t max,
              std::optional<int64_t> fallback = std::nullopt);
  // A finite number with min ≤ x ≤ max, or min < x with `min_open`.
  double Real(absl::string_view key, double min, bool min_open, std::optional<double> fallback,
              double max = std::numeric_limits<double>::max());
  bool Bool(absl::string_view key, bool fallback);
  // Without a fallback an empty string is returned after the fault.
  std::string String(absl::string_view key, std::optional<std::string> fallback);
  // A token id or a list of them, each in [0, vocab).
  std::vector<int32_t> TokenIds(absl::string_view key, int64_t vocab);

  // A fault at `key`: what was found there, and what is allowed.
  void Refuse(absl::string_view key, absl::string_view allowed);
  // Refuses any value but `allowed`.
  void MustBe(absl::string_view key, const nlohmann::json& allowed, absl::string_view reason);

  // A BadDataError (proto/errors.h) with all faults, or OK.
  absl::Status Finish() const;

 private:
  const nlohmann::json* object_;
  std::string source_;
  std::vector<std::string> faults_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MODEL_CONFIG_READER_H_
