// What NCCL allocates on a GPU for itself, beside the buffers of the plan: an upper estimate by its
// documented settings and its sources (2.18 to 2.28; src/init.cc and src/transport/p2p.cc). No real
// NCCL with several GPUs was at hand to measure it with.
//
// Between two ranks that talk NCCL opens a connection in each of its channels. A connection has a
// buffer for each of three protocols on the receiving GPU, and a page on the sending one. Here
// ranks talk in two ways, over connections of their own:
//   sums, and what is handed from rank to rank, by sends: each rank with each other one;
//   what is gathered, the weights of shard_base among it, by broadcasts along a ring: each rank
//   with the ones before and behind it. What NCCL lays out for its trees, before 2.22 already when
//   it starts, are connections to the same ones, and with several machines to a parent and a child
//   more.
// Ranks of other machines share one pool of smaller buffers for sends.

#ifndef QLORA_ENGINE_COMM_NCCL_MEMORY_H_
#define QLORA_ENGINE_COMM_NCCL_MEMORY_H_

#include <cstdint>
#include <string>

#include "engine/comm/world.h"

namespace qlora::engine {

// By which both the communicator is made and its memory is reckoned.
struct NcclSettings {
  int channels = 8;  // at most. NCCL's own choice, up to 64, would have no bound that a plan bears
  int64_t buffer_bytes = int64_t{4} << 20;  // of the protocol for large messages
};

// As the variables NCCL_MAX_CTAS or NCCL_MAX_NCHANNELS, NCCL_MIN_CTAS, NCCL_MIN_NCHANNELS and
// NCCL_BUFFSIZE have it, which NCCL reads too; what is no positive number is ignored.
NcclSettings SettingsOfNccl(const EnvironmentOf& environment);

// Bytes on the GPU of one of `ranks`, of which `local_ranks` run on its machine. 0 for one rank.
int64_t NcclDeviceBytes(int ranks, int local_ranks, const NcclSettings& settings);

// For the plan: "NCCL: up to 8 channels to each rank, buffers of 4096 KiB (...)".
std::string DescribeNccl(const NcclSettings& settings);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_NCCL_MEMORY_H_
