// `post_processor` of a tokenizer.json: the ids put round an encoded text (BOS, EOS).
//
// Supported: TemplateProcessing (its template for single texts), ByteLevel (changes offsets only),
// Sequence.
#ifndef QLORA_ENGINE_TEXT_POST_PROCESSOR_H_
#define QLORA_ENGINE_TEXT_POST_PROCESSOR_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace qlora::engine {

struct PostProcessor {
  std::vector<int32_t> before;
  std::vector<int32_t> after;

  // From the field, which may be null. DataLoss naming the part that is not supported.
  static absl::StatusOr<PostProcessor> Make(const nlohmann::json& field, const std::string& path);
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_POST_PROCESSOR_H_
