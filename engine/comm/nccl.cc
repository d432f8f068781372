#include "engine/comm/nccl.h"

#include <dlfcn.h>

#include <type_traits>

#include "absl/strings/str_cat.h"
#include "proto/errors.h"

// Where NCCL's header is at hand, it must say the same.
#if __has_include(<nccl.h>) && __has_include(<cuda_runtime.h>)
#include <nccl.h>
#if NCCL_VERSION_CODE >= 21800
#define QLORA_HAS_NCCL_HEADER 1
#endif
#endif

namespace qlora::engine::nccl {
namespace {

constexpr char kLibrary[] = "libnccl.so.2";

#ifdef QLORA_HAS_NCCL_HEADER
static_assert(int(Result::kSuccess) == ncclSuccess && int(Result::kInProgress) == ncclInProgress &&
              int(Result::kSystemError) == ncclSystemError &&
              int(Result::kRemoteError) == ncclRemoteError);
static_assert(int(DataType::kUint8) == ncclUint8 && int(DataType::kFloat32) == ncclFloat32 &&
              int(DataType::kFloat64) == ncclFloat64);
static_assert(sizeof(UniqueId) == sizeof(ncclUniqueId) && sizeof(Config) <= sizeof(ncclConfig_t));
static_assert(offsetof(Config, magic) == offsetof(ncclConfig_t, magic) &&
              offsetof(Config, version) == offsetof(ncclConfig_t, version) &&
              offsetof(Config, blocking) == offsetof(ncclConfig_t, blocking) &&
              offsetof(Config, max_ctas) == offsetof(ncclConfig_t, maxCTAs) &&
              offsetof(Config, net_name) == offsetof(ncclConfig_t, netName) &&
              offsetof(Config, split_share) == offsetof(ncclConfig_t, splitShare));
#endif

// "2.28.9" of 22809.
std::string VersionText(int version) {
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace

absl::StatusOr<Library> Load() {
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return proto::NoDeviceError(
        absl::StrCat("several ranks on GPUs need NCCL, but ", dlerror(),
                     ". Install it (libnccl2 in NVIDIA's repository), or name its folder in "
                     "LD_LIBRARY_PATH"));
  }
  Library nccl;
  std::string missing;
  const auto find = [&](auto* to, const char* name) {
    void* const symbol = dlsym(library, name);
    if (symbol == nullptr) absl::StrAppend(&missing, " ", name);
    *to = reinterpret_cast<std::remove_pointer_t<decltype(to)>>(symbol);
  };
  find(&nccl.GetVersion, "ncclGetVersion");
  find(&nccl.GetErrorString, "ncclGetErrorString");
  find(&nccl.GetLastError, "ncclGetLastError");
  find(&nccl.GetUniqueId, "ncclGetUniqueId");
  find(&nccl.CommInitRankConfig, "ncclCommInitRankConfig");
  find(&nccl.CommGetAsyncError, "ncclCommGetAsyncError");
  find(&nccl.CommAbort, "ncclCommAbort");
  find(&nccl.GroupStart, "ncclGroupStart");
  find(&nccl.GroupEnd, "ncclGroupEnd");
  find(&nccl.Send, "ncclSend");
  find(&nccl.Recv, "ncclRecv");
  find(&nccl.Broadcast, "ncclBroadcast");
  int version = 0;
  if (nccl.GetVersion != nullptr && nccl.GetVersion(&version) == Result::kSuccess &&
      version < kVersion) {
    return proto::NoDeviceError(absl::StrCat(kLibrary, " is NCCL ", VersionText(version),
                                             "; several ranks on GPUs need ", VersionText(kVersion),
                                             " or later: install a newer libnccl2"));
  }
  if (!missing.empty()) {
    return proto::NoDeviceError(
        absl::StrCat(kLibrary, " is no NCCL that can be used; it lacks", missing));
  }
  nccl.version = VersionText(version);
  return nccl;
}

}  // namespace qlora::engine::nccl
