#include "engine/model/rope_config.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"

namespace qlora::engine {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMostPositions = int64_t{1} << 30;
constexpr double kDefaultTheta = 10000.0;
constexpr char kTypes[] =
    "\"default\", \"linear\", \"llama3\" or \"yarn\" (other types make the angles depend on the "
    "length of the text)";

// "finetuned" is a note in early YaRN checkpoints that no implementation reads.
constexpr const char* kKnownKeys[] = {"rope_type",       "type",
                                      "rope_theta",      "partial_rotary_factor",
                                      "factor",          "original_max_position_embeddings",
                                      "beta_fast",       "beta_slow",
                                      "truncate",        "attention_factor",
                                      "mscale",          "mscale_all_dim",
                                      "low_freq_factor", "high_freq_factor",
                                      "finetuned"};

// The part that two spellings of one scaling have in common.
Json Normalized(Json scaling) {
  if (scaling.contains("type") && !scaling.contains("rope_type")) {
    scaling["rope_type"] = scaling["type"];
  }
  for (const char* key : {"type", "rope_theta", "partial_rotary_factor"}) scaling.erase(key);
  for (auto it = scaling.begin(); it != scaling.end();) {
    it = it->is_null() ? scaling.erase(it) : std::next(it);
  }
  return scaling;
}

// The key of the object that holds the scaling, "" if there is none.
std::string ScalingKey(ConfigReader* reader) {
  std::string found;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json* value = reader->Find(key);
    if (value == nullptr) continue;
    if (!value->is_object()) {
      reader->Refuse(key, "null or an object");
    } else if (found.empty()) {
      found = key;
    } else if (!value->empty() && Normalized(*value) != Normalized(*reader->Find(found))) {
      reader->Refuse(key, absl::StrCat("the same as in ", found, ", or null"));
    }
  }
  return found;
}

std::string ReadType(ConfigReader* reader, const std::string& scaling) {
  const std::string type_key = absl::StrCat(scaling, ".rope_type");
  const std::string legacy_key = absl::StrCat(scaling, ".type");
  const std::string legacy = reader->String(legacy_key, "default");
  const std::string type = reader->String(type_key, legacy);
  if (reader->Has(type_key) && reader->Has(legacy_key) && type != legacy) {
    reader->Refuse(legacy_key, absl::StrCat("the same as ", type_key, ", \"", type, "\""));
  }
  return type;
}

// Both the top of the file and the scaling may hold theta.
double ReadTheta(ConfigReader* reader, const std::string& scaling) {
  const double top = reader->Real("rope_theta", 1.0, true, kDefaultTheta);
  if (scaling.empty()) return top;
  const std::string key = absl::StrCat(scaling, ".rope_theta");
  const double theta = reader->Real(key, 1.0, true, top);
  if (reader->Has("rope_theta") && theta != top) {
    reader->Refuse(key, absl::StrCat("the same as rope_theta at the top, ", top));
  }
  return theta;
}

void ReadLlama3(ConfigReader* reader, const std::string& scaling, RopeSpec* rope) {
  rope->scaling = RopeSpec::Scaling::kLlama3;
  const std::string high = absl::StrCat(scaling, ".high_freq_factor");
  rope->low_freq_factor =
      reader->Real(absl::StrCat(scaling, ".low_freq_factor"), 0.0, true, std::nullopt);
  rope->high_freq_factor = reader->Real(high, 0.0, true, std::nullopt);
  if (rope->high_freq_factor <= rope->low_freq_factor) {
    reader->Refuse(high, absl::StrCat("a number above low_freq_factor, ", rope->low_freq_factor));
  }
}

// 0.1 · mscale · ln(factor) + 1, YaRN's temperature.
double YarnScale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

void ReadYarn(ConfigReader* reader, const std::string& scaling, RopeSpec* rope) {
  rope->scaling = RopeSpec::Scaling::kYarn;
  const auto key = [&](const char* name) { return absl::StrCat(scaling, ".", name); };
  // In these four, 0 means "not given", as in Transformers.
  const auto or_default = [](double value, double fallback) {
    return value == 0.0 ? fallback : value;
  };
  rope->beta_fast = or_default(reader->Real(key("beta_fast"), 0.0, false, 0.0), 32.0);
  rope->beta_slow = or_default(reader->Real(key("beta_slow"), 0.0, false, 0.0), 1.0);
  if (rope->beta_fast < rope->beta_slow) {
    reader->Refuse(key("beta_fast"),
                   absl::StrCat("a number not below beta_slow, ", rope->beta_slow));
  }
  rope->truncate = reader->Bool(key("truncate"), true);
  const double mscale = reader->Real(key("mscale"), 0.0, false, 0.0);
  const double mscale_all = reader->Real(key("mscale_all_dim"), 0.0, false, 0.0);
  const double derived = mscale != 0.0 && mscale_all != 0.0
                             ? YarnScale(rope->factor, mscale) / YarnScale(rope->factor, mscale_all)
                             : YarnScale(rope->factor, 1.0);
  rope->attention_factor = reader->Real(key("attention_factor"), 0.0, true, derived);
}

}  // namespace

RopeSpec ReadRope(ConfigReader* reader, int64_t head_size, int64_t max_positions) {
  RopeSpec rope;
  rope.rotary_dims = head_size;
  reader->MustBe("partial_rotary_factor", 1.0, "this family rotates whole heads");
  const std::string scaling = ScalingKey(reader);
  rope.theta = ReadTheta(reader, scaling);
  if (scaling.empty()) return rope;

  const auto key = [&](const char* name) { return absl::StrCat(scaling, ".", name); };
  const Json& object = *reader->Find(scaling);
  for (auto it = object.begin(); it != object.end(); ++it) {
    const bool known = std::any_of(std::begin(kKnownKeys), std::end(kKnownKeys),
                                   [&](const char* name) { return it.key() == name; });
    if (!known && !it->is_null()) {
      reader->Refuse(absl::StrCat(scaling, ".", it.key()), "not there: the key is unknown");
    }
  }
  reader->MustBe(key("partial_rotary_factor"), 1.0, "this family rotates whole heads");

  const std::string type = ReadType(reader, scaling);
  if (type == "default") return rope;
  if (type != "linear" && type != "llama3" && type != "yarn") {
    reader->Refuse(key(reader->Has(key("rope_type")) ? "rope_type" : "type"), kTypes);
    return rope;
  }
  std::optional<double> factor;
  if (type != "linear") {
    // A few configs keep it at the top; Transformers lets that one win.
    const int64_t top = reader->Int("original_max_position_embeddings", 1, kMostPositions, 0);
    rope.original_max_positions = reader->Int(key("original_max_position_embeddings"), 1,
                                              kMostPositions, top > 0 ? top : max_positions);
    if (top > 0 && rope.original_max_positions != top) {
      reader->Refuse(key("original_max_position_embeddings"),
                     absl::StrCat("the same as at the top, ", top));
    }
    if (type == "yarn") factor = double(max_positions) / double(rope.original_max_positions);
  }
  rope.factor = reader->Real(key("factor"), 1.0, false, factor);
  if (type == "linear") rope.scaling = RopeSpec::Scaling::kLinear;
  if (type == "llama3") ReadLlama3(reader, scaling, &rope);
  if (type == "yarn") ReadYarn(reader, scaling, &rope);
  return rope;
}

}  // namespace qlora::engine
