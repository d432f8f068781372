// What reductions promise beyond a value: the same bits on every instruction set, and a hash that
// tells contents apart.

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/kernels/norm_halves.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"

namespace qlora::kernels::optest {
namespace {

std::unique_ptr<Device> NewCpu(cpu::Isa isa) {
  return *cpu::CreateCpuDevice({.threads = 1, .isa = isa});
}

template <class OpType>
std::vector<uint8_t> Result(Device& device, const OpCase<OpType>& c) {
  auto run = *DeviceRun::Create(device, *c.memory, {c.op});
  EXPECT_TRUE(run->Run().ok());
  return *run->Download();
}

template <class OpType>
void ExpectSameBitsOnEveryIsa() {
  const std::vector<cpu::Isa> isas = cpu::AvailableIsas();
  const auto first = NewCpu(isas[0]);
  for (size_t i = 1; i < isas.size(); ++i) {
    const auto other = NewCpu(isas[i]);
    for (int index = 0; index < OpCases<OpType>::Count(); ++index) {
      const OpCase<OpType> c = OpCases<OpType>::Make(index);
      ASSERT_EQ(FirstByteDifference(*c.memory, c.op, Result(*first, c), Result(*other, c)), "")
          << cpu::NameOf(isas[i]) << ", case " << index << ": " << c.name;
    }
  }
}

TEST(NormAndFinite, HasTheSameBitsOnEveryIsa) { ExpectSameBitsOnEveryIsa<NormAndFinite>(); }
TEST(NormAndFinite, InHalvesHasTheBitsOfTheWhole) {
  ExpectHalvesGiveTheWhole(*NewCpu(cpu::BestIsa()));
}
TEST(ContentHash, HasTheSameBitsOnEveryIsa) { ExpectSameBitsOnEveryIsa<ContentHash>(); }

uint64_t HashOf(Device& device, const std::vector<uint8_t>& bytes) {
  OpCase<ContentHash> c = MakeContentHash({.n = int64_t(bytes.size()), .dtype = DType::kU8});
  std::copy(bytes.begin(), bytes.end(), static_cast<uint8_t*>(const_cast<void*>(c.op.x.data)));
  const std::vector<uint8_t> result = Result(device, c);
  uint64_t hash;
  std::memcpy(&hash, result.data() + c.memory->OffsetOf(c.op.hash.data), sizeof hash);
  return hash;
}

std::vector<uint8_t> RandomBytes(int64_t n, uint64_t seed) {
  CountedRandom random(seed);
  std::vector<uint8_t> bytes(n);
  for (uint8_t& b : bytes) b = uint8_t(random.Bits());
  return bytes;
}

TEST(ContentHash, EveryBitCounts) {
  const auto device = NewCpu(cpu::BestIsa());
  for (int64_t n : {1, 7, 8, 31, 32, 33, 100}) {
    std::vector<uint8_t> bytes = RandomBytes(n, 5);
    std::set<uint64_t> hashes = {HashOf(*device, bytes)};
    for (int64_t bit = 0; bit < 8 * n; ++bit) {
      bytes[bit / 8] ^= uint8_t(1 << bit % 8);
      hashes.insert(HashOf(*device, bytes));
      bytes[bit / 8] ^= uint8_t(1 << bit % 8);
    }
    EXPECT_EQ(hashes.size(), size_t(8 * n + 1)) << n << " bytes";
  }
}

TEST(ContentHash, LengthCountsWhereAllBytesAreZero) {
  const auto device = NewCpu(cpu::BestIsa());
  std::set<uint64_t> hashes;
  for (int64_t n = 0; n <= 130; ++n) hashes.insert(HashOf(*device, std::vector<uint8_t>(n)));
  EXPECT_EQ(hashes.size(), 131u);
}

TEST(ContentHash, TheOrderOfChunksCounts) {
  constexpr int64_t kChunk = int64_t{1} << 20;
  const auto device = NewCpu(cpu::BestIsa());
  std::vector<uint8_t> bytes = RandomBytes(3 * kChunk + 5, 6);
  std::set<uint64_t> hashes = {HashOf(*device, bytes)};
  std::swap_ranges(bytes.begin(), bytes.begin() + kChunk, bytes.begin() + kChunk);
  hashes.insert(HashOf(*device, bytes));
  std::swap_ranges(bytes.begin() + kChunk, bytes.begin() + 2 * kChunk, bytes.begin() + 2 * kChunk);
  hashes.insert(HashOf(*device, bytes));
  bytes.back() ^= 1;
  hashes.insert(HashOf(*device, bytes));
  EXPECT_EQ(hashes.size(), 4u);
}

TEST(ContentHash, EqualContentsHashEquallyAtAnyAddress) {
  const auto device = NewCpu(cpu::BestIsa());
  for (int64_t n : {3, 64, 1000}) {
    std::set<uint64_t> hashes;
    for (uint64_t seed = 0; seed < 8; ++seed) {
      OpCase<ContentHash> c =
          MakeContentHash({.n = n, .dtype = DType::kU8, .pitched = true, .seed = seed});
      std::memset(const_cast<void*>(c.op.x.data), 7, n);
      const std::vector<uint8_t> result = Result(*device, c);
      uint64_t hash;
      std::memcpy(&hash, result.data() + c.memory->OffsetOf(c.op.hash.data), sizeof hash);
      hashes.insert(hash);
    }
    EXPECT_EQ(hashes.size(), 1u) << n;
  }
}

}  // namespace
}  // namespace qlora::kernels::optest
