#include "kernels/cpu/xxh64.h"

#include <bit>
#include <cstring>
#include <initializer_list>

namespace qlora::kernels::cpu {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87;
constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4F;
constexpr uint64_t kPrime3 = 0x165667B19E3779F9;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63;
constexpr uint64_t kPrime5 = 0x27D4EB2F165667C5;

template <class T>
uint64_t Read(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

uint64_t Round(uint64_t lane, uint64_t input) {
  return std::rotl(lane + input * kPrime2, 31) * kPrime1;
}

}  // namespace

uint64_t Xxh64(const void* data, int64_t bytes, uint64_t seed) {
  const uint8_t* at = static_cast<const uint8_t*>(data);
  int64_t left = bytes;
  uint64_t hash = seed + kPrime5;
  if (bytes >= 32) {
    uint64_t lane0 = seed + kPrime1 + kPrime2, lane1 = seed + kPrime2, lane2 = seed,
             lane3 = seed - kPrime1;
    for (; left >= 32; left -= 32, at += 32) {
      lane0 = Round(lane0, Read<uint64_t>(at));
      lane1 = Round(lane1, Read<uint64_t>(at + 8));
      lane2 = Round(lane2, Read<uint64_t>(at + 16));
      lane3 = Round(lane3, Read<uint64_t>(at + 24));
    }
    hash = std::rotl(lane0, 1) + std::rotl(lane1, 7) + std::rotl(lane2, 12) + std::rotl(lane3, 18);
    for (uint64_t lane : {lane0, lane1, lane2, lane3})
      hash = (hash ^ Round(0, lane)) * kPrime1 + kPrime4;
  }
  hash += uint64_t(bytes);
  for (; left >= 8; left -= 8, at += 8) {
    hash = std::rotl(hash ^ Round(0, Read<uint64_t>(at)), 27) * kPrime1 + kPrime4;
  }
  for (; left >= 4; left -= 4, at += 4) {
    hash = std::rotl(hash ^ (Read<uint32_t>(at) * kPrime1), 23) * kPrime2 + kPrime3;
  }
  for (; left > 0; --left, ++at) hash = std::rotl(hash ^ (*at * kPrime5), 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

}  // namespace qlora::kernels::cpu
