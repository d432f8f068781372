// See README.md. Calls come from one thread of a process; there is one communicator in it.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "engine/comm/nccl.h"
#include "tests/support/fake_nccl/shared_memory.h"
#include "tests/support/simt/runtime.h"

namespace {

using namespace qlora::fake_nccl;
using qlora::engine::nccl::Config;
using qlora::engine::nccl::DataType;
using qlora::engine::nccl::Result;
using qlora::engine::nccl::Stream;
using qlora::engine::nccl::UniqueId;

// How often a caller is told that its call is in progress.
constexpr int kAnswersInProgress = 3;

// FAKE_NCCL_FAULT: what goes wrong, at which rank, in its how-manieth group of calls.
//   old       the library is of a version that is too old
//   init      the communicator can't be made: said at once
//   lateinit  said later, by CommGetAsyncError
//   hang      the group never gets on the stream
//   stall     the group gets on the stream and never ends
//   fail      the group fails as it does when another process has gone
//   miscount  the first transfer of the group is one element short
struct Fault {
  std::string kind;
  int rank = -1;
  int64_t group = 0;
  bool Is(const char* name, int at_rank, int64_t at_group = 0) const {
    return kind == name && rank == at_rank && group == at_group;
  }
};

Fault TheFault() {
  Fault fault;
  const char* text = std::getenv("FAKE_NCCL_FAULT");
  if (text != nullptr) std::istringstream(text) >> fault.kind >> fault.rank >> fault.group;
  return fault;
}

int64_t SizeOf(DataType type) {
  return type == DataType::kFloat64 ? 8 : type == DataType::kFloat32 ? 4 : 1;
}

// One way between this rank and another.
struct Transfer {
  Header header;
  int peer = 0;
  bool sends = false;
  uint8_t* data = nullptr;
  int64_t bytes = 0, done = 0;
  bool started = false;
  bool IsOver() const { return started && done == bytes; }
};

// Lives as long as the communicator and what it has put on streams.
struct State {
  SharedMemory* memory = nullptr;
  int rank = 0, size = 0;
  Result error = Result::kSuccess;
  std::string text;
  bool aborted = false;
  ~State() {
    if (memory != nullptr) Unmap(memory);
  }

  void Fail(Result result, std::string why) {
    if (error == Result::kSuccess) error = result, text = std::move(why);
  }

  Channel& ChannelOf(const Transfer& t) const {
    return t.sends ? memory->channels[rank][t.peer] : memory->channels[t.peer][rank];
  }

  // Moves what can be moved of one chunk.
  bool Advance(Transfer* t) {
    Channel& channel = ChannelOf(*t);
    if (channel.full.load(std::memory_order_acquire) == t->sends) return false;
    if (t->sends) {
      channel.header = t->header;
      channel.bytes = std::min(kChannelBytes, t->bytes - t->done);
      std::memcpy(channel.data, t->data + t->done, size_t(channel.bytes));
    } else {
      if (channel.header != t->header) {
        Fail(Result::kInvalidUsage, Difference(t->peer, channel.header, t->header));
        return false;
      }
      std::memcpy(t->data + t->done, channel.data, size_t(channel.bytes));
    }
    t->done += channel.bytes;
    t->started = true;
    channel.full.store(t->sends, std::memory_order_release);
    return true;
  }

  std::string Difference(int peer, const Header& sent, const Header& wanted) const {
    const auto describe = [](const Header& h) {
      return std::to_string(h.count) + " of type " + std::to_string(h.type) + " by " +
             (h.kind == kBroadcast ? "broadcast" : "send") + " behind collective " +
             std::to_string(h.collective);
    };
    return "rank " + std::to_string(peer) + " sends " + describe(sent) + ", rank " +
           std::to_string(rank) + " expects " + describe(wanted);
  }

  // Moves what can be moved; true where all transfers are over. Those of one channel go in order.
  bool Advance(std::vector<Transfer>* transfers) {
    bool all_over = true;
    for (bool moved = true; moved && error == Result::kSuccess;) {
      moved = false;
      all_over = true;
      bool busy[2][kMostRanks] = {};
      for (Transfer& t : *transfers) {
        if (t.IsOver()) continue;
        all_over = false;
        bool& channel_is_busy = busy[t.sends][t.peer];
        if (!std::exchange(channel_is_busy, true)) moved |= Advance(&t);
      }
    }
    return all_over;
  }
};

}  // namespace

struct ncclComm {
  std::shared_ptr<State> state = std::make_shared<State>();
  std::string name;  // of the memory; empty once all have joined
  int answers_in_progress = kAnswersInProgress;
  int64_t groups = 0, collectives = 0;  // started; collectives are groups of all ranks
  bool launching = false;
  std::vector<Transfer> calls;
  Stream stream = nullptr;
};

namespace {

const Fault fault = TheFault();
ncclComm* the_comm = nullptr;
int group_depth = 0;
std::string call_error;  // of a call without a communicator

// Tells of a call that may not be made now; null where it may.
const char* WhyNot(ncclComm* comm) {
  if (comm != the_comm || comm == nullptr) return "there is no such communicator";
  if (group_depth == 0) return "calls stand in groups here";
  if (comm->launching || !comm->name.empty()) return "the call before is still in progress";
  return nullptr;
}

Result Add(ncclComm* comm, char kind, const void* data, size_t count, DataType type, int peer,
           bool sends, Stream stream) {
  if (const char* why = WhyNot(comm)) {
    call_error = why;
    if (comm == the_comm && comm != nullptr) comm->state->Fail(Result::kInvalidUsage, why);
    return Result::kInvalidUsage;
  }
  Transfer t;
  t.header = {kind, int32_t(type), int64_t(count), comm->collectives};
  t.peer = peer;
  t.sends = sends;
  t.data = static_cast<uint8_t*>(const_cast<void*>(data));
  t.bytes = int64_t(count) * SizeOf(type);
  if (fault.Is("miscount", comm->state->rank, comm->groups) && comm->calls.empty()) {
    --t.header.count;
    t.bytes -= SizeOf(type);
  }
  comm->calls.push_back(t);
  comm->stream = stream;
  return Result::kInProgress;
}

void Launch(ncclComm* comm) {
  const bool stalls = fault.Is("stall", comm->state->rank, comm->groups);
  comm->collectives += std::any_of(comm->calls.begin(), comm->calls.end(),
                                   [](const Transfer& t) { return t.header.kind == kBroadcast; });
  auto transfers = std::make_shared<std::vector<Transfer>>(std::move(comm->calls));
  comm->calls.clear();
  ++comm->groups;
  comm->launching = false;
  if (transfers->empty()) return;
  qlora::simt::EnqueueForeign(static_cast<qlora::gpu::Stream>(comm->stream),
                              [state = comm->state, transfers, stalls] {
                                if (state->aborted) return true;
                                return !stalls && state->Advance(transfers.get());
                              });
}

}  // namespace

extern "C" {

Result ncclGetVersion(int* version) {
  *version = fault.kind == "old" ? 21005 : 22809;
  return Result::kSuccess;
}

const char* ncclGetErrorString(Result result) {
  switch (result) {
    case Result::kSystemError:
      return "unhandled system error";
    case Result::kRemoteError:
      return "remote process exited or there was a network error";
    case Result::kInvalidUsage:
      return "invalid usage";
    default:
      return "another error";
  }
}

const char* ncclGetLastError(ncclComm* comm) {
  return comm == nullptr ? call_error.c_str() : comm->state->text.c_str();
}

Result ncclGetUniqueId(UniqueId* id) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  std::snprintf(id->internal, sizeof(id->internal), "/qlora_fake_nccl-%d-%lld", int(getpid()),
                static_cast<long long>(now));
  return Result::kSuccess;
}

Result ncclCommInitRankConfig(ncclComm** comm, int size, UniqueId id, int rank, Config* config) {
  const bool known = config->size >= sizeof(Config) && config->magic == 0xcafebeef;
  // Without a bound on channels nobody knows what memory NCCL takes.
  const bool is_bounded = config->max_ctas > 0;
  if (!known || !is_bounded || config->blocking != 0 || size > kMostRanks || the_comm != nullptr) {
    call_error =
        "a communicator that does not block, with a bound on its channels, the only one of its "
        "process, is asked for";
    return Result::kInvalidArgument;
  }
  if (fault.Is("init", rank)) {
    call_error = "no socket interface found";
    return Result::kSystemError;
  }
  the_comm = *comm = new ncclComm;
  State& state = *the_comm->state;
  state.rank = rank;
  state.size = size;
  state.memory = Map(id.internal);
  the_comm->name = id.internal;
  if (state.memory == nullptr) return Result::kSystemError;
  if (fault.Is("lateinit", rank)) {
    state.Fail(Result::kSystemError, "connection refused");
  } else {
    ++state.memory->joined;
  }
  return Result::kInProgress;
}

Result ncclCommGetAsyncError(ncclComm* comm, Result* error) {
  State& state = *comm->state;
  *error = Result::kInProgress;
  if (comm->answers_in_progress > 0) {
    --comm->answers_in_progress;
    return Result::kSuccess;
  }
  if (fault.Is("fail", state.rank, comm->groups) && comm->launching) {
    state.Fail(Result::kRemoteError, "socket closed by the other side");
  }
  if (state.error != Result::kSuccess) {
    *error = state.error;
    return Result::kSuccess;
  }
  if (!comm->name.empty()) {
    if (state.memory->joined < state.size) return Result::kSuccess;
    Unlink(comm->name);
    comm->name.clear();
  }
  if (comm->launching) {
    if (fault.Is("hang", state.rank, comm->groups)) return Result::kSuccess;
    Launch(comm);
  }
  *error = Result::kSuccess;
  return Result::kSuccess;
}

Result ncclCommAbort(ncclComm* comm) {
  comm->state->aborted = true;
  if (!comm->name.empty()) Unlink(comm->name);
  if (const char* log = std::getenv("FAKE_NCCL_LOG")) {
    const std::string line = "rank " + std::to_string(comm->state->rank) + " aborted\n";
    const int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    [[maybe_unused]] const ssize_t n = write(fd, line.data(), line.size());
    close(fd);
  }
  the_comm = nullptr;
  delete comm;
  return Result::kSuccess;
}

Result ncclGroupStart() {
  ++group_depth;
  return Result::kSuccess;
}

Result ncclGroupEnd() {
  if (--group_depth > 0 || the_comm == nullptr) return Result::kSuccess;
  if (the_comm->state->error != Result::kSuccess) return the_comm->state->error;
  the_comm->launching = true;
  the_comm->answers_in_progress = kAnswersInProgress;
  return Result::kInProgress;
}

Result ncclSend(const void* from, size_t count, DataType type, int peer, ncclComm* comm,
                Stream stream) {
  return Add(comm, kSend, from, count, type, peer, true, stream);
}

Result ncclRecv(void* to, size_t count, DataType type, int peer, ncclComm* comm, Stream stream) {
  return Add(comm, kSend, to, count, type, peer, false, stream);
}

Result ncclBroadcast(const void* from, void* to, size_t count, DataType type, int root,
                     ncclComm* comm, Stream stream) {
  if (comm == nullptr) return Result::kInvalidArgument;
  const State& state = *comm->state;
  if (state.rank != root) return Add(comm, kBroadcast, to, count, type, root, false, stream);
  for (int peer = 0; peer < state.size; ++peer) {
    if (peer == root && from == to) continue;
    const Result result = Add(comm, kBroadcast, from, count, type, peer, true, stream);
    if (result != Result::kInProgress) return result;
  }
  return from == to ? Result::kInProgress
                    : Add(comm, kBroadcast, to, count, type, root, false, stream);
}

}  // extern "C"
