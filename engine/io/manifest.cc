#include "engine/io/manifest.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/io/crc32c.h"
#include "engine/io/sha256.h"

namespace qlora::engine {
namespace {

constexpr absl::string_view kMagic = "QLORAMAN";
constexpr size_t kFrame = 8 + 4 + 4 + 4;
// 200,000 files' worth; a manifest of ours holds about ten.
constexpr int64_t kMaxManifestBytes = 64 << 20;
constexpr uint64_t kMaxChunk = 64 << 20;

std::string LittleEndian32(uint32_t value) {
  std::string out;
  for (int i = 0; i < 4; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
  return out;
}

uint32_t Load32(absl::string_view bytes) {
  uint32_t value = 0;
  for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

// What a CRC can't tell: that the writer was ours and in its senses.
absl::Status CheckManifest(const proto::FolderManifest& manifest, absl::string_view path) {
  const auto fail = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(path, ": ", what));
  };
  if (manifest.step() < 0) return fail(absl::StrCat("negative step ", manifest.step()));
  if (manifest.chunk_bytes() < 1 || manifest.chunk_bytes() > kMaxChunk) {
    return fail(
        absl::StrCat("chunk_bytes is ", manifest.chunk_bytes(), ", allowed 1 to ", kMaxChunk));
  }
  std::string previous;
  for (const proto::FolderManifest::File& file : manifest.files()) {
    if (!IsPlainName(file.name()) || file.name() == kManifestFile) {
      return fail(absl::StrCat("\"", file.name(), "\" is no name for a listed file"));
    }
    if (file.name() <= previous) return fail("files are not sorted, or one is listed twice");
    previous = file.name();
    const uint64_t chunks =
        file.size() / manifest.chunk_bytes() + (file.size() % manifest.chunk_bytes() != 0 ? 1 : 0);
    if (chunks != static_cast<uint64_t>(file.chunk_crc32c_size())) {
      return fail(absl::StrCat(file.name(), ": ", file.chunk_crc32c_size(), " chunk checksums for ",
                               file.size(), " bytes"));
    }
  }
  return absl::OkStatus();
}

// OK, an I/O error, or DATA_LOSS with the first bytes that differ.
absl::Status VerifyFile(Env* env, const std::string& path, const proto::FolderManifest::File& want,
                        uint64_t chunk_bytes, VerifyDepth depth) {
  auto file = env->NewReadableFile(path);
  if (absl::IsNotFound(file.status())) {
    return absl::DataLossError(absl::StrCat(path, " is missing"));
  }
  if (!file.ok()) return file.status();
  if (static_cast<uint64_t>((*file)->size()) != want.size()) {
    return absl::DataLossError(
        absl::StrCat(path, " has ", (*file)->size(), " bytes, the manifest says ", want.size()));
  }
  std::string buffer(static_cast<size_t>(std::min(chunk_bytes, want.size())), '\0');
  uint32_t whole = 0;
  const bool hashes = depth == VerifyDepth::kChecksumsAndHashes && !want.sha256().empty();
  Sha256 sha256;
  for (int i = 0; i < want.chunk_crc32c_size(); ++i) {
    const uint64_t begin = static_cast<uint64_t>(i) * chunk_bytes;
    const uint64_t end = std::min(begin + chunk_bytes, want.size());
    auto n = (*file)->Read(absl::MakeSpan(buffer).subspan(0, end - begin));
    if (!n.ok()) return n.status();
    const absl::string_view chunk(buffer.data(), static_cast<size_t>(*n));
    if (chunk.size() != end - begin || Crc32c(chunk) != want.chunk_crc32c(i)) {
      return absl::DataLossError(absl::StrCat(path, " is damaged between byte ", begin,
                                              " and byte ", end,
                                              ": its CRC-32C is not the manifest's"));
    }
    whole = ExtendCrc32c(whole, chunk);
    if (hashes) sha256.Update(chunk);
  }
  if (whole != want.crc32c()) {
    return absl::DataLossError(
        absl::StrCat(path, ": the CRC-32C of the whole file is not the manifest's"));
  }
  if (hashes && sha256.Finish() != want.sha256()) {
    return absl::DataLossError(absl::StrCat(
        path, ": its SHA-256 is not the manifest's, though its CRC-32C is: changed on purpose"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string EncodeManifest(const proto::FolderManifest& manifest, uint32_t version) {
  const std::string message = manifest.SerializeAsString();
  const std::string sizes = LittleEndian32(version) + LittleEndian32(message.size());
  const uint32_t crc = ExtendCrc32c(Crc32c(sizes), message);
  return absl::StrCat(kMagic, sizes, LittleEndian32(MaskCrc32c(crc)), message);
}

absl::StatusOr<proto::FolderManifest> DecodeManifest(absl::string_view bytes,
                                                     absl::string_view path) {
  if (bytes.size() < kFrame || bytes.substr(0, 8) != kMagic) {
    return absl::DataLossError(absl::StrCat(path, ": not a manifest, or its beginning is damaged"));
  }
  const uint32_t version = Load32(bytes.substr(8));
  const uint32_t length = Load32(bytes.substr(12));
  const absl::string_view message = bytes.substr(kFrame);
  const uint32_t crc = ExtendCrc32c(Crc32c(bytes.substr(8, 8)), message);
  if (message.size() != length || UnmaskCrc32c(Load32(bytes.substr(16))) != crc) {
    return absl::DataLossError(
        absl::StrCat(path, ": the manifest is damaged or cut short (", bytes.size(), " bytes)"));
  }
  if (version > kManifestVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": written by a newer version (manifest version ", version,
                     "; this program reads up to ", kManifestVersion, "): use that version"));
  }
  proto::FolderManifest manifest;
  if (version == 0 || !manifest.ParseFromArray(message.data(), static_cast<int>(message.size()))) {
    return absl::DataLossError(absl::StrCat(path, ": the manifest can't be read"));
  }
  if (absl::Status status = CheckManifest(manifest, path); !status.ok()) return status;
  return manifest;
}

absl::StatusOr<proto::FolderManifest> ReadManifest(Env* env, const std::string& folder) {
  const std::string path = JoinPath(folder, kManifestFile);
  auto bytes = env->ReadFile(path, kMaxManifestBytes);
  if (!bytes.ok()) return bytes.status();
  return DecodeManifest(*bytes, path);
}

absl::StatusOr<proto::FolderManifest> VerifyFolder(Env* env, const std::string& folder,
                                                   VerifyDepth depth) {
  auto manifest = ReadManifest(env, folder);
  if (!manifest.ok()) return manifest.status();
  std::vector<std::string> damaged;
  for (const proto::FolderManifest::File& file : manifest->files()) {
    absl::Status status =
        VerifyFile(env, JoinPath(folder, file.name()), file, manifest->chunk_bytes(), depth);
    if (IsIoError(status)) return status;
    if (!status.ok()) damaged.emplace_back(status.message());
  }
  if (!damaged.empty()) return absl::DataLossError(absl::StrJoin(damaged, "; "));
  return manifest;
}

}  // namespace qlora::engine
