#include <cstring>

#include "kernels/cuda/elements.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/reduce.h"

namespace qlora::kernels::cuda {
namespace {

// XXH64 as its public specification has it.
constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87;
constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4F;
constexpr uint64_t kPrime3 = 0x165667B19E3779F9;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63;
constexpr uint64_t kPrime5 = 0x27D4EB2F165667C5;

constexpr int kThreads = 128;
constexpr int kLanes = 4;  // of XXH64: one thread each

QLORA_DEVICE uint64_t RotateLeft(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }
QLORA_DEVICE uint64_t Round(uint64_t lane, uint64_t input) {
  return RotateLeft(lane + input * kPrime2, 31) * kPrime1;
}
// Little-endian, at any alignment.
template <class T>
QLORA_DEVICE uint64_t Read(const uint8_t* at) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(T) == 0) return *reinterpret_cast<const T*>(at);
  uint64_t value = 0;
  for (int i = 0; i < int(sizeof(T)); ++i) value |= uint64_t(at[i]) << (8 * i);
  return value;
}

// Four neighbouring lanes of a warp hash `bytes` bytes together; all get the result. Every lane of
// the warp must come.
QLORA_DEVICE uint64_t Xxh64(const uint8_t* data, int64_t bytes, uint64_t seed) {
  const int me = gpu::Lane() % kLanes, first = gpu::Lane() - me;
  const int64_t stripes = bytes / 32;
  uint64_t lane = me == 0   ? seed + kPrime1 + kPrime2
                  : me == 1 ? seed + kPrime2
                  : me == 2 ? seed
                            : seed - kPrime1;
  for (int64_t i = 0; i < stripes; ++i) lane = Round(lane, Read<uint64_t>(data + 32 * i + 8 * me));
  uint64_t lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = gpu::Shuffle(lane, first + i);
  uint64_t hash = seed + kPrime5;
  if (stripes > 0) {
    hash = RotateLeft(lanes[0], 1) + RotateLeft(lanes[1], 7) + RotateLeft(lanes[2], 12) +
           RotateLeft(lanes[3], 18);
    for (int i = 0; i < kLanes; ++i) hash = (hash ^ Round(0, lanes[i])) * kPrime1 + kPrime4;
  }
  hash += uint64_t(bytes);
  const uint8_t* at = data + 32 * stripes;
  int64_t left = bytes - 32 * stripes;
  for (; left >= 8; left -= 8, at += 8) {
    hash = RotateLeft(hash ^ Round(0, Read<uint64_t>(at)), 27) * kPrime1 + kPrime4;
  }
  for (; left >= 4; left -= 4, at += 4) {
    hash = RotateLeft(hash ^ (Read<uint32_t>(at) * kPrime1), 23) * kPrime2 + kPrime3;
  }
  for (; left > 0; --left, ++at) hash = RotateLeft(hash ^ (*at * kPrime5), 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

QLORA_KERNEL void HashChunks(const uint8_t* data, int64_t bytes, int64_t chunks, uint64_t* hashes) {
  const int64_t thread = gpu::BlockX() * kThreads + gpu::ThreadX();
  const int64_t chunk = thread / kLanes, begin = chunk * kHashChunk;
  const int64_t left = chunk < chunks ? bytes - begin : 0;
  const uint64_t hash = Xxh64(data + begin, left < kHashChunk ? left : kHashChunk, uint64_t(chunk));
  if (chunk < chunks && thread % kLanes == 0) hashes[chunk] = hash;
}

QLORA_KERNEL void HashHashes(const uint64_t* hashes, int64_t chunks, int64_t bytes,
                             uint64_t* hash) {
  const uint64_t result =
      Xxh64(reinterpret_cast<const uint8_t*>(hashes), chunks * 8, uint64_t(bytes));
  if (gpu::ThreadX() == 0) *hash = result;
}

}  // namespace

void Run(const ContentHash& op, const Context& context) {
  const int64_t bytes = op.x.Count() * SizeOf(op.x.dtype);
  const int64_t chunks = CeilDiv(bytes, kHashChunk);
  uint64_t* hashes = static_cast<uint64_t*>(op.workspace.data);
  gpu::Launch(context.launcher, ContentHash::kName, &HashChunks,
              {.blocks_x = CeilDiv(chunks * kLanes, kThreads), .threads = kThreads},
              static_cast<const uint8_t*>(op.x.data), bytes, chunks, hashes);
  gpu::Launch(context.launcher, ContentHash::kName, &HashHashes, {.threads = 32},
              static_cast<const uint64_t*>(hashes), chunks, bytes,
              static_cast<uint64_t*>(op.hash.data));
}

}  // namespace qlora::kernels::cuda
