// The frame of manifest.pb and the checks of what it says; the layout stands in
// proto/manifest.proto.
#ifndef QLORA_ENGINE_IO_MANIFEST_H_
#define QLORA_ENGINE_IO_MANIFEST_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/io/env.h"
#include "proto/manifest.pb.h"

namespace qlora::engine {

inline constexpr char kManifestFile[] = "manifest.pb";
// Raised when the manifest's meaning changes; every released version stays readable.
inline constexpr uint32_t kManifestVersion = 1;
// Each chunk of a file has a CRC of its own, so that damage is named by its place.
inline constexpr int64_t kManifestChunk = 1 << 20;

std::string EncodeManifest(const proto::FolderManifest& manifest,
                           uint32_t version = kManifestVersion);

// DATA_LOSS where the bytes are damaged, FAILED_PRECONDITION where a newer version wrote them.
// `path` is for messages only.
absl::StatusOr<proto::FolderManifest> DecodeManifest(absl::string_view bytes,
                                                     absl::string_view path);

// The manifest of a folder, without a look at the files it lists. NOT_FOUND where there is none.
absl::StatusOr<proto::FolderManifest> ReadManifest(Env* env, const std::string& folder);

// Reads every file that the manifest lists. DATA_LOSS names each damaged file and the first bytes
// of it that differ. Files beside those listed are no fault. kChecksumsAndHashes also holds each
// file against its SHA-256, where the manifest has one: a checksum notices rot, but whoever changes
// a file on purpose can make it fit.
enum class VerifyDepth { kChecksums, kChecksumsAndHashes };
absl::StatusOr<proto::FolderManifest> VerifyFolder(Env* env, const std::string& folder,
                                                   VerifyDepth depth = VerifyDepth::kChecksums);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_MANIFEST_H_
