// `decoder` of a tokenizer.json: from tokens back to text.
//
// Supported: Sequence, ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace.
#ifndef QLORA_ENGINE_TEXT_TOKEN_DECODER_H_
#define QLORA_ENGINE_TEXT_TOKEN_DECODER_H_

#include <cstddef>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/text/split_pattern.h"

namespace qlora::engine {

class TokenDecoder {
 public:
  // From the field; null joins tokens with spaces. DataLoss naming the part that is not supported.
  static absl::StatusOr<TokenDecoder> Make(const nlohmann::json& field, const std::string& path);

  // Thread-safe.
  std::string Decode(std::vector<std::string> tokens) const;

 private:
  struct Step {
    enum class Kind { kByteLevel, kByteFallback, kFuse, kStrip, kReplace, kMetaspace } kind;
    std::string content = "";  // kStrip, kReplace: what is put; kMetaspace: the replacement
    std::shared_ptr<const SplitPattern> pattern = nullptr;  // kReplace
    size_t start = 0;                                       // kStrip: at most so many at the start
    size_t stop = 0;                                        // kStrip: and at the end
    bool drop_first = false;  // kMetaspace: the first token loses its replacements
  };

  absl::Status Add(const nlohmann::json& part, const std::string& path);
  static void ApplyStep(const Step& step, std::vector<std::string>& tokens);

  bool has_decoder_ = false;
  std::vector<Step> steps_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_TOKEN_DECODER_H_
