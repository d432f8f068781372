#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>

#include "absl/strings/escaping.h"
#include "engine/io/crc32c.h"
#include "engine/io/sha256.h"
#include "tests/support/faulty_env.h"

namespace qlora::engine {
namespace {

TEST(Crc32cTest, KnownValues) {
  // RFC 3720, appendix B.4.
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  std::string rising, falling;
  for (int i = 0; i < 32; ++i) {
    rising.push_back(static_cast<char>(i));
    falling.push_back(static_cast<char>(31 - i));
  }
  EXPECT_EQ(Crc32c(rising), 0x46dd794eu);
  EXPECT_EQ(Crc32c(falling), 0x113fdb5cu);
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(Crc32c(""), 0u);
}

TEST(Crc32cTest, InstructionTableAndPiecesAgree) {
  std::mt19937 random(1);
  std::string bytes(300, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  for (size_t start = 0; start < 9; ++start) {
    for (size_t n = 0; n + start <= bytes.size(); n += 1 + n / 8) {
      const absl::string_view part = absl::string_view(bytes).substr(start, n);
      ASSERT_EQ(ExtendCrc32c(7, part), ExtendCrc32cPortable(7, part)) << start << " " << n;
      const size_t cut = n / 3;
      ASSERT_EQ(ExtendCrc32c(Crc32c(part.substr(0, cut)), part.substr(cut)), Crc32c(part));
    }
  }
}

TEST(Crc32cTest, MaskIsTfRecords) {
  // 0xe3069283 rotated right by 15, plus 0xa282ead8.
  EXPECT_EQ(MaskCrc32c(0xe3069283u), 0xc78ab0e5u);
  for (uint32_t crc : {0u, 1u, 0x80000000u, 0xffffffffu, 0x12345678u}) {
    EXPECT_EQ(UnmaskCrc32c(MaskCrc32c(crc)), crc);
  }
}

TEST(Sha256Test, KnownValues) {
  // FIPS 180-4 examples.
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  Sha256 portable(/*allow_instructions=*/false);
  portable.Update("abc");
  EXPECT_EQ(absl::BytesToHexString(portable.Finish()), Sha256Hex("abc"));
  EXPECT_EQ(Sha256Hex(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, PiecesMakeNoDifference) {
  for (size_t n : {1, 55, 56, 57, 63, 64, 65, 119, 120, 128, 200}) {
    const std::string bytes(n, 'x');
    for (size_t cut = 0; cut <= n; cut += 7) {
      Sha256 hash;
      hash.Update(absl::string_view(bytes).substr(0, cut));
      hash.Update(absl::string_view(bytes).substr(cut));
      Sha256 whole;
      whole.Update(bytes);
      ASSERT_EQ(hash.Finish(), whole.Finish()) << n << " " << cut;
    }
  }
}

TEST(Sha256Test, InstructionsAndPortableCodeAgree) {
  std::mt19937 random(2);
  std::string bytes(1000, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  for (size_t n = 0; n <= bytes.size(); n += 13) {
    Sha256 fast, portable(/*allow_instructions=*/false);
    fast.Update(absl::string_view(bytes).substr(0, n));
    portable.Update(absl::string_view(bytes).substr(0, n));
    ASSERT_EQ(fast.Finish(), portable.Finish()) << n;
  }
}

TEST(Sha256Test, OfAFileAcrossItsBuffer) {
  tests::FaultyEnv env;
  const std::string bytes((1 << 20) + 5, 'q');
  auto file = env.NewWritableFile("f");
  ASSERT_TRUE((*file)->Append(bytes).ok());
  int parts = 0;
  EXPECT_EQ(*Sha256File(&env, "f", [&] { ++parts; }), Sha256Hex(bytes));
  EXPECT_EQ(parts, 2);
  EXPECT_FALSE(Sha256File(&env, "none").ok());
  env.FailAt(env.operations() + 2, EIO, false);  // the second read
  EXPECT_TRUE(IsIoError(Sha256File(&env, "f").status()));
}

}  // namespace
}  // namespace qlora::engine
