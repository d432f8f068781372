// Layouts for warpgroup products, held against the instruction as the executor reads it: through
// descriptors alone.

#include "kernels/cuda/hopper_layout.h"

#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/simt/hopper.h"

namespace qlora::kernels::cuda::hopper {
namespace {

constexpr uint32_t kBase = 5 * 1024;

TEST(HopperLayout, SwizzleIsABijection) {
  std::set<uint32_t> seen;
  for (int row = 0; row < 64; ++row) {
    for (int column = 0; column < 64; ++column) seen.insert(ElementOffset(row, column));
  }
  EXPECT_EQ(seen.size(), 64u * 64);
  EXPECT_EQ(*seen.rbegin(), kAtomBytes - 2);
}

// What the descriptors say of an operand is where the decoders put it, in both directions: element
// by element over every warpgroup, instruction, row and depth.
TEST(HopperLayout, DescriptorsFindTheForwardWeight) {
  for (int group = 0; group < 2; ++group) {
    for (int part = 0; part < kTileDepth / kInstructionDepth; ++part) {
      for (int r = 0; r < kInstructionRows; ++r) {
        for (int k = 0; k < kInstructionDepth; ++k) {
          const int row = group * 64 + r, column = part * 16 + k;
          ASSERT_EQ(simt::OperandAddress(WeightDescriptor<false>(kBase, group, part), false, r, k),
                    kBase + ElementOffset(row, column));
        }
      }
    }
  }
}

TEST(HopperLayout, DescriptorsFindTheBackwardWeight) {
  for (int group = 0; group < 2; ++group) {
    for (int part = 0; part < kTileDepth / kInstructionDepth; ++part) {
      for (int r = 0; r < kInstructionRows; ++r) {
        for (int k = 0; k < kInstructionDepth; ++k) {
          // The tile's depth is its stored rows; operand rows are columns of the half `group`.
          const int row = group * 64 + part * 16 + k, column = r;
          ASSERT_EQ(simt::OperandAddress(WeightDescriptor<true>(kBase, group, part), true, r, k),
                    kBase + ElementOffset(row, column));
        }
      }
    }
  }
}

TEST(HopperLayout, DescriptorsFindTheTokens) {
  for (int part = 0; part < kTileDepth / kInstructionDepth; ++part) {
    for (int token = 0; token < 256; ++token) {
      for (int k = 0; k < kInstructionDepth; ++k) {
        ASSERT_EQ(simt::OperandAddress(TokenDescriptor(kBase, part), false, token, k),
                  kBase + ElementOffset(token, part * 16 + k));
      }
    }
  }
}

// The fields themselves, as numbers.
TEST(HopperLayout, DescriptorFields) {
  EXPECT_EQ(KMajorDescriptor(0x4400), uint64_t{1} << 62 | uint64_t{64} << 32 | 1 << 16 | 0x440);
  EXPECT_EQ(MnMajorDescriptor(0x4400, 8192),
            uint64_t{1} << 62 | uint64_t{64} << 32 | 512 << 16 | 0x440);
}

// Eight threads' 16-byte stores are one pass over the banks: each bank once.
TEST(HopperLayout, StoresMeetEveryBankOnce) {
  for (int first = 0; first < kDecoders; first += 8) {
    for (int chunk = 0; chunk < 8; ++chunk) {
      std::set<uint32_t> banks;
      for (int thread = first; thread < first + 8; ++thread) {
        for (int word = 0; word < 4; ++word) {
          banks.insert((ChunkOffset(thread, chunk) / 4 + uint32_t(word)) % 32);
        }
      }
      EXPECT_EQ(banks.size(), 32u);
    }
  }
}

TEST(HopperLayout, ResultsAreShared) {
  for (const int columns : {128, 256}) {
    std::set<std::pair<int, int>> seen;
    for (int thread = 0; thread < 128; ++thread) {
      for (int i = 0; i < columns / 2; ++i) {
        const Place p = ResultPlace(thread, i);
        const auto [row, column] = simt::ResultOf(thread, i);
        EXPECT_EQ(p.row, row);
        EXPECT_EQ(p.column, column);
        seen.insert({p.row, p.column});
      }
    }
    EXPECT_EQ(int(seen.size()), 64 * columns);
    EXPECT_EQ(*seen.rbegin(), std::pair(63, columns - 1));
  }
}

// Every block of W is decoded by one thread of one step of the tiles that cover it; its thread's
// stored row is what the descriptors above take for its place.
template <bool kBackward>
void ExpectEveryBlockOnce(int64_t weight_rows, int64_t column_blocks) {
  std::set<std::pair<int64_t, int64_t>> seen;
  const int64_t extent = kBackward ? column_blocks * 64 : weight_rows;
  const int64_t steps = kBackward ? weight_rows / 64 : column_blocks;
  for (int64_t row0 = 0; row0 < extent; row0 += kTileRows) {
    for (int64_t step = 0; step < steps; ++step) {
      for (int d = 0; d < kDecoders; ++d) {
        const WeightBlock b = BlockOf<kBackward>(d, row0, step);
        EXPECT_TRUE(seen.insert({b.row, b.column_block}).second);
        if (kBackward) {
          EXPECT_EQ(b.row, step * 64 + d % 64);
          EXPECT_EQ(b.column_block * 64, row0 + d / 64 * 64);
        } else {
          EXPECT_EQ(b.row, row0 + d);
          EXPECT_EQ(b.column_block, step);
        }
      }
    }
  }
  EXPECT_EQ(int64_t(seen.size()), weight_rows * column_blocks);
}
TEST(HopperLayout, EveryBlockIsDecodedOnce) {
  ExpectEveryBlockOnce<false>(384, 6);
  ExpectEveryBlockOnce<true>(384, 6);
}

TEST(HopperLayout, EveryTileIsWalkedOnce) {
  for (const int64_t weight_tiles : {1, 3, 32}) {
    for (const int64_t token_tiles : {1, 7, 8, 9, 23}) {
      std::set<std::pair<int64_t, int64_t>> seen;
      for (int64_t i = 0; i < weight_tiles * token_tiles; ++i) {
        const TileIndex t = TileAt(i, weight_tiles, token_tiles);
        EXPECT_TRUE(t.weight >= 0 && t.weight < weight_tiles);
        EXPECT_TRUE(t.token >= 0 && t.token < token_tiles);
        EXPECT_EQ(t.token / kRasterTokens, i / (kRasterTokens * weight_tiles));
        seen.insert({t.weight, t.token});
      }
      EXPECT_EQ(int64_t(seen.size()), weight_tiles * token_tiles);
    }
  }
}

}  // namespace
}  // namespace qlora::kernels::cuda::hopper
