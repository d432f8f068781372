// Small JSON files (configs, indexes, sidecars), strictly: UTF-8, no duplicate key, bounded size
// and depth.
#ifndef QLORA_ENGINE_IO_JSON_FILE_H_
#define QLORA_ENGINE_IO_JSON_FILE_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/io/env.h"

namespace qlora::engine {

inline constexpr int64_t kMaxJsonFile = 16 << 20;
inline constexpr int kMaxJsonDepth = 64;

// `where` names the text in messages. INVALID_ARGUMENT says at which byte what was wrong. Keys keep
// their order neither here nor in the result (sorted).
absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view where);

absl::StatusOr<nlohmann::json> ReadJsonFile(Env* env, const std::string& path,
                                            int64_t max_bytes = kMaxJsonFile);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_JSON_FILE_H_
