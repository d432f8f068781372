#include "engine/io/env.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace qlora::engine {
namespace {

constexpr char kErrnoPayload[] = "qlora/errno";

absl::StatusCode CodeOfErrno(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::StatusCode::kNotFound;
    case EEXIST:
    case ENOTEMPTY:
      return absl::StatusCode::kAlreadyExists;
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::StatusCode::kPermissionDenied;
    case ELOOP:
    case ENAMETOOLONG:
    case EISDIR:
      return absl::StatusCode::kInvalidArgument;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::StatusCode::kResourceExhausted;
    default:
      return absl::StatusCode::kUnknown;
  }
}

}  // namespace

absl::Status ErrnoStatus(int error, absl::string_view what, absl::string_view path) {
  absl::Status status(CodeOfErrno(error),
                      absl::StrCat("cannot ", what, " ", path, ": ", std::strerror(error)));
  status.SetPayload(kErrnoPayload, absl::Cord(absl::StrCat(error)));
  return status;
}

int StatusErrno(const absl::Status& status) {
  const auto payload = status.GetPayload(kErrnoPayload);
  int error = 0;
  if (payload.has_value() && absl::SimpleAtoi(std::string(*payload), &error)) return error;
  return 0;
}

bool IsIoError(const absl::Status& status) {
  const int error = StatusErrno(status);
  return error != 0 && error != ENOENT && error != ENOTDIR;
}

std::string JoinPath(absl::string_view folder, absl::string_view name) {
  if (folder.empty()) return std::string(name);
  if (folder.back() == '/') return absl::StrCat(folder, name);
  return absl::StrCat(folder, "/", name);
}

namespace {

absl::string_view WithoutTrailingSlash(absl::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  return path;
}

}  // namespace

std::string ParentPath(absl::string_view path) {
  path = WithoutTrailingSlash(path);
  const size_t slash = path.rfind('/');
  if (slash == absl::string_view::npos) return ".";
  if (slash == 0) return "/";
  return std::string(WithoutTrailingSlash(path.substr(0, slash)));
}

std::string BaseName(absl::string_view path) {
  path = WithoutTrailingSlash(path);
  const size_t slash = path.rfind('/');
  return std::string(slash == absl::string_view::npos ? path : path.substr(slash + 1));
}

std::string ResolvedPath(const std::string& path) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  const std::filesystem::path resolved = std::filesystem::weakly_canonical(absolute, error);
  return std::string(
      WithoutTrailingSlash((error ? absolute.lexically_normal() : resolved).string()));
}

bool IsWithin(absl::string_view path, absl::string_view folder) {
  return absl::ConsumePrefix(&path, WithoutTrailingSlash(folder)) &&
         (path.empty() || path[0] == '/' || folder == "/");
}

bool IsPlainName(absl::string_view name) {
  if (name.empty() || name == "." || name == "..") return false;
  for (char c : name) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f || c == '/' || c == '\\') return false;
  }
  return true;
}

bool Env::Exists(const std::string& path) { return Stat(path, /*follow=*/false).ok(); }

bool Env::IsFolder(const std::string& path) {
  const auto stat = Stat(path, /*follow=*/true);
  return stat.ok() && stat->kind == FileStat::Kind::kFolder;
}

absl::StatusOr<bool> Env::IsPresent(const std::string& path) {
  const auto stat = Stat(path, /*follow=*/false);
  if (absl::IsNotFound(stat.status())) return false;
  if (!stat.ok()) return stat.status();
  return true;
}

absl::StatusOr<int64_t> Env::FileSize(const std::string& path) {
  auto stat = Stat(path, /*follow=*/true);
  if (!stat.ok()) return stat.status();
  if (stat->kind != FileStat::Kind::kFile) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  }
  return stat->size;
}

absl::Status Env::CreateFolders(const std::string& path) {
  if (IsFolder(path)) return absl::OkStatus();
  const std::string parent = ParentPath(path);
  if (parent != path) {
    if (absl::Status status = CreateFolders(parent); !status.ok()) return status;
  }
  absl::Status status = CreateFolder(path);
  // Another process may have been faster.
  if (absl::IsAlreadyExists(status)) {
    if (IsFolder(path)) return absl::OkStatus();
    return absl::Status(status.code(),
                        absl::StrCat("cannot create folder ", path, ": it is no folder"));
  }
  if (!status.ok()) return status;
  return SyncFolder(parent);
}

absl::Status Env::RemoveAll(const std::string& path) {
  auto stat = Stat(path, /*follow=*/false);
  if (absl::IsNotFound(stat.status())) return absl::OkStatus();
  if (!stat.ok()) return stat.status();
  if (stat->kind != FileStat::Kind::kFolder) return RemoveFile(path);
  auto names = List(path);
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    if (absl::Status status = RemoveAll(JoinPath(path, name)); !status.ok()) return status;
  }
  return RemoveEmptyFolder(path);
}

}  // namespace qlora::engine
