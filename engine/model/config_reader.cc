#include "engine/model/config_reader.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using Json = nlohmann::json;

// A value as it is shown in a message.
std::string Shown(const Json* value) {
  constexpr size_t kMostBytes = 80;
  if (value == nullptr) return "nothing";
  std::string text = value->dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  if (text.size() > kMostBytes) text = absl::StrCat(text.substr(0, kMostBytes), "...");
  return text;
}

}  // namespace

ConfigReader::ConfigReader(const Json& object, std::string source)
    : object_(&object), source_(std::move(source)) {
  static const Json kEmpty = Json::object();
  if (!object.is_object()) {
    faults_.push_back(absl::StrCat("found ", Shown(&object), ", allowed: a JSON object"));
    object_ = &kEmpty;
  }
}

const Json* ConfigReader::Find(absl::string_view key) const {
  const Json* value = object_;
  for (absl::string_view part : absl::StrSplit(key, '.')) {
    if (!value->is_object()) return nullptr;
    const auto it = value->find(std::string(part));
    if (it == value->end() || it->is_null()) return nullptr;
    value = &*it;
  }
  return value;
}

int64_t ConfigReader::Int(absl::string_view key, int64_t min, int64_t max,
                          std::optional<int64_t> fallback) {
  const Json* value = Find(key);
  if (value == nullptr && fallback.has_value()) return *fallback;
  if (value != nullptr && value->is_number_integer()) {
    // An unsigned value above the signed range must not wrap into the allowed one.
    const bool huge = value->is_number_unsigned() && value->get<uint64_t>() > uint64_t(INT64_MAX);
    const int64_t number = huge ? INT64_MAX : value->get<int64_t>();
    if (number >= min && number <= max) return number;
  }
  Refuse(key, absl::StrFormat("an integer from %d to %d", min, max));
  return fallback.value_or(min);
}

double ConfigReader::Real(absl::string_view key, double min, bool min_open,
                          std::optional<double> fallback, double max) {
  const Json* value = Find(key);
  if (value == nullptr && fallback.has_value()) return *fallback;
  if (value != nullptr && value->is_number()) {
    const double number = value->get<double>();
    if (std::isfinite(number) && number <= max && (min_open ? number > min : number >= min)) {
      return number;
    }
  }
  std::string allowed = absl::StrFormat("a number %s %g", min_open ? "above" : "from", min);
  if (max < std::numeric_limits<double>::max()) absl::StrAppendFormat(&allowed, " to %g", max);
  Refuse(key, allowed);
  return fallback.value_or(min_open ? min + 1.0 : min);
}

bool ConfigReader::Bool(absl::string_view key, bool fallback) {
  const Json* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  Refuse(key, "true or false");
  return fallback;
}

std::string ConfigReader::String(absl::string_view key, std::optional<std::string> fallback) {
  const Json* value = Find(key);
  if (value == nullptr && fallback.has_value()) return *fallback;
  if (value != nullptr && value->is_string()) return value->get<std::string>();
  Refuse(key, "a string");
  return fallback.value_or("");
}

std::vector<int32_t> ConfigReader::TokenIds(absl::string_view key, int64_t vocab) {
  const Json* value = Find(key);
  if (value == nullptr) return {};
  const Json list = value->is_array() ? *value : Json::array({*value});
  std::vector<int32_t> ids;
  for (const Json& id : list) {
    // Negative numbers are the only ones that nlohmann stores as signed.
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= uint64_t(vocab)) {
      Refuse(key, absl::StrFormat("a token id from 0 to %d (below vocab_size) or a list of them",
                                  vocab - 1));
      return {};
    }
    ids.push_back(static_cast<int32_t>(id.get<uint64_t>()));
  }
  return ids;
}

void ConfigReader::Refuse(absl::string_view key, absl::string_view allowed) {
  faults_.push_back(absl::StrCat(key, ": found ", Shown(Find(key)), ", allowed: ", allowed));
}

void ConfigReader::MustBe(absl::string_view key, const Json& allowed, absl::string_view reason) {
  const Json* value = Find(key);
  if (value == nullptr || *value == allowed) return;
  Refuse(key, absl::StrCat(Shown(&allowed), " (", reason, ")"));
}

absl::Status ConfigReader::Finish() const {
  if (faults_.empty()) return absl::OkStatus();
  if (faults_.size() == 1) {
    return proto::BadDataError(absl::StrCat(source_, ": ", faults_.front()));
  }
  return proto::BadDataError(
      absl::StrCat(source_, ": ", faults_.size(), " faults:\n  ", absl::StrJoin(faults_, "\n  ")));
}

}  // namespace qlora::engine
