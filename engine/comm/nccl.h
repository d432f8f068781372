// NCCL's library, loaded where a job has several ranks on GPUs, and only then: the program starts,
// and is built, on machines without it.
//
// What is used of its binary interface stands here as of NCCL 2.18, which all later versions of 2.x
// serve: a configuration tells its size and version.

#ifndef QLORA_ENGINE_COMM_NCCL_H_
#define QLORA_ENGINE_COMM_NCCL_H_

#include <climits>
#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

struct ncclComm;

namespace qlora::engine::nccl {

inline constexpr int kVersion = 21800;

enum class Result : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
};

enum class DataType : int { kUint8 = 1, kFloat32 = 7, kFloat64 = 8 };

struct UniqueId {
  char internal[128];
};

struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = kVersion;
  int blocking = 0;  // calls return kInProgress; CommGetAsyncError tells when they are done
  int cga_cluster_size = INT_MIN, min_ctas = INT_MIN;  // as NCCL chooses
  int max_ctas = INT_MIN;                              // channels, at most
  const char* net_name = nullptr;
  int split_share = INT_MIN;
  int unused = INT_MIN;  // of later versions; here it only fills the struct
};

using Communicator = ::ncclComm*;
using Stream = void*;  // a cudaStream_t

// The functions used, under NCCL's names.
struct Library {
  Result (*GetVersion)(int* version);
  const char* (*GetErrorString)(Result result);
  const char* (*GetLastError)(Communicator comm);  // null: of the last call
  Result (*GetUniqueId)(UniqueId* id);
  Result (*CommInitRankConfig)(Communicator* comm, int size, UniqueId id, int rank, Config* config);
  Result (*CommGetAsyncError)(Communicator comm, Result* error);
  Result (*CommAbort)(Communicator comm);
  Result (*GroupStart)();
  Result (*GroupEnd)();
  Result (*Send)(const void* from, size_t count, DataType type, int peer, Communicator comm,
                 Stream stream);
  Result (*Recv)(void* to, size_t count, DataType type, int peer, Communicator comm, Stream stream);
  Result (*Broadcast)(const void* from, void* to, size_t count, DataType type, int root,
                      Communicator comm, Stream stream);
  std::string version;  // "2.28.9"
};

// NoDevice where there is no NCCL, or one older than kVersion.
absl::StatusOr<Library> Load();

}  // namespace qlora::engine::nccl

#endif  // QLORA_ENGINE_COMM_NCCL_H_
