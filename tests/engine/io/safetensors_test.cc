#include "engine/io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/io/utf8.h"

namespace qlora::engine {
namespace {

using ::testing::HasSubstr;

std::string Length(uint64_t n) {
  std::string out;
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(n >> (8 * i)));
  return out;
}

std::string File(const std::string& json, size_t data_bytes) {
  return Length(json.size()) + json + std::string(data_bytes, 'd');
}

absl::StatusOr<SafetensorsHeader> Parse(const std::string& file) {
  return ParseSafetensorsHeader({reinterpret_cast<const uint8_t*>(file.data()), file.size()},
                                static_cast<int64_t>(file.size()), "the_file");
}

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":[", shape,
                      "],\"data_offsets\":[", offsets, "]}");
}

TEST(SafetensorsHeaderTest, ReadsWhatIsLegal) {
  const std::string json =
      "{ \"__metadata__\" : {\"format\":\"pt\", \"k\\n\\u00e4\\ud83d\\ude00\":\"\"},\n\t" +
      Entry("b", "BF16", "2, 3", "4,16") + "," + Entry("a\\/", "U8", "4", "0,4") + " ," +
      Entry("zero", "F32", "0", "16,16") + "," + Entry("scalar", "F32", "", "16,20") + "," +
      Entry("four", "F4", "6", "20,23") + "}   ";
  auto header = Parse(File(json, 23));
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 5u);
  EXPECT_EQ(header->tensors[0].name, "a/");
  EXPECT_EQ(header->tensors[1].name, "b");
  EXPECT_EQ(header->tensors[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(header->tensors[1].elements(), 6);
  EXPECT_EQ(header->tensors[1].bytes, 12);
  EXPECT_EQ(header->tensors[1].offset, static_cast<int64_t>(8 + json.size() + 4));
  EXPECT_EQ(header->tensors[1].Describe(), "BF16 [2, 3]");
  EXPECT_EQ(header->tensors[2].name, "zero");
  EXPECT_EQ(header->tensors[3].elements(), 1);
  EXPECT_EQ(header->metadata.at("k\n\xc3\xa4\xf0\x9f\x98\x80"), "");
  EXPECT_TRUE(Parse(File("{}", 0)).ok());
  EXPECT_TRUE(Parse(File("{\"__metadata__\":{}}", 0)).ok());
}

struct Attack {
  std::string name;
  std::string file;
  std::string message;  // part of it
};

// The one tensor that most attacks bend.
std::string One(const std::string& dtype, const std::string& shape, const std::string& offsets,
                size_t data) {
  return File("{" + Entry("t", dtype, shape, offsets) + "}", data);
}

std::vector<Attack> Attacks() {
  const std::string good = Entry("t", "U8", "4", "0,4");
  std::string nulls = "{" + good + "}";
  nulls += '\0';
  std::string deep = "{\"t\":";
  deep.append(1'000'000, '[');
  std::string deep_objects;
  for (int i = 0; i < 100'000; ++i) deep_objects += "{\"t\":";
  std::string many = "{";
  for (int i = 0; i < 1'000'000; ++i) {
    many += absl::StrCat(i == 0 ? "" : ",", Entry(absl::StrCat(i), "U8", "0", "0,0"));
  }
  many += "}";
  std::string rank = "1";
  for (int i = 0; i < 1000; ++i) rank += ",1";
  const std::string long_name(5000, 'n');
  return {
      {"no_bytes", "", "too short"},
      {"seven_bytes", "1234567", "too short"},
      {"length_2_to_63", Length(uint64_t{1} << 63) + "{}", "at most 100000000"},
      {"length_all_ones", Length(~uint64_t{0}) + "{}", "at most 100000000"},
      {"length_200_gb", Length(200'000'000'000) + "{}", "at most 100000000"},
      {"length_100_mb_and_1", Length(100'000'001) + "{}", "at most 100000000"},
      {"length_beyond_file", Length(100) + "{}", "cut short"},
      {"length_100_mb_of_nothing", Length(100'000'000) + "{}", "cut short"},
      {"length_0", Length(0), "does not begin with '{'"},
      {"leading_space", File(" {}", 0), "does not begin with '{'"},
      {"an_array", File("[]", 0), "does not begin with '{'"},
      {"byte_order_mark", File("\xef\xbb\xbf{}", 0), "does not begin with '{'"},
      {"a_pickle", File("\x80\x02}q.", 0), "does not begin with '{'"},
      {"name_not_utf8", One("U8", "4", "0,4", 4).replace(10, 1, "\xff"), "not UTF-8"},
      {"name_overlong_utf8", File("{\"\xc0\xaf\":1}", 0), "not UTF-8"},
      {"name_surrogate_utf8", File("{\"\xed\xa0\x80\":1}", 0), "not UTF-8"},
      {"lone_high_surrogate", File("{\"\\ud800\":1}", 0), "lone high surrogate"},
      {"lone_low_surrogate", File("{\"\\udc00\":1}", 0), "lone low surrogate"},
      {"high_surrogate_pair_broken", File("{\"\\ud800\\u0041\":1}", 0), "lone high surrogate"},
      {"bad_escape", File("{\"\\x41\":1}", 0), "unknown escape"},
      {"short_hex_escape", File("{\"\\u12\":1}", 0), "four hex digits"},
      {"raw_newline_in_name", File("{\"a\nb\":1}", 0), "control character"},
      {"escaped_nul_in_name", File("{" + Entry("a\\u0000b", "U8", "4", "0,4") + "}", 4),
       "control character"},
      {"empty_name", File("{" + Entry("", "U8", "4", "0,4") + "}", 4), "without a name"},
      {"long_name", File("{" + Entry(long_name, "U8", "4", "0,4") + "}", 4), "longer than"},
      {"nul_after_header", File(nulls, 4), "text after the header"},
      {"two_objects", File("{" + good + "}{}", 4), "text after the header"},
      {"unclosed_object", File("{" + good, 4), "end of the header"},
      {"unclosed_string", File("{\"t", 4), "without an end"},
      {"string_ends_in_backslash", File("{\"t\\", 4), "without an end"},
      {"trailing_comma", File("{" + good + ",}", 4), "expected '\"'"},
      {"missing_comma", File("{" + good + Entry("u", "U8", "0", "4,4") + "}", 4), "expected '}'"},
      {"single_quotes", File("{'t':1}", 0), "expected '\"'"},
      {"comment", File("{/**/}", 0), "expected '\"'"},
      {"tensor_is_number", File("{\"t\":1}", 0), "expected '{'"},
      {"depth_1000000", File(deep, 0), "expected '{'"},
      {"depth_100000_objects", File(deep_objects, 0), "unknown"},
      {"deep_shape", One("U8", "[[[[1]]]]", "0,1", 1), "expected a number"},
      {"tensors_1000000", File(many, 0), "more than 200000 tensors"},
      {"rank_1001", One("U8", rank, "0,1", 1), "more than 32 dimensions"},
      {"duplicate_tensor",
       File("{" + Entry("t", "U8", "4", "0,4") + "," + Entry("t", "U8", "4", "4,8") + "}", 8),
       "occurs twice"},
      {"duplicate_tensor_escaped",
       File("{" + Entry("t", "U8", "4", "0,4") + "," + Entry("\\u0074", "U8", "4", "4,8") + "}", 8),
       "occurs twice"},
      {"duplicate_dtype",
       File("{\"t\":{\"dtype\":\"U8\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4),
       "occurs twice"},
      {"duplicate_offsets",
       File(
           "{\"t\":{\"dtype\":\"U8\",\"data_offsets\":[0,4],\"shape\":[4],\"data_offsets\":[0,4]}}",
           4),
       "occurs twice"},
      {"duplicate_metadata", File("{\"__metadata__\":{},\"__metadata__\":{}}", 0), "occurs twice"},
      {"duplicate_metadata_key", File("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0),
       "occurs twice"},
      {"metadata_not_strings", File("{\"__metadata__\":{\"a\":1}}", 0), "expected '\"'"},
      {"unknown_key",
       File("{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"x\":1}}", 4),
       "unknown"},
      {"no_dtype", File("{\"t\":{\"shape\":[4],\"data_offsets\":[0,4]}}", 4), "no dtype"},
      {"no_shape", File("{\"t\":{\"dtype\":\"U8\",\"data_offsets\":[0,4]}}", 4), "no shape"},
      {"no_offsets", File("{\"t\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4), "two data_offsets"},
      {"unknown_dtype", One("U7", "4", "0,4", 4), "unknown dtype"},
      {"lower_case_dtype", One("f32", "1", "0,4", 4), "unknown dtype"},
      {"one_offset", One("U8", "4", "0", 4), "two data_offsets"},
      {"three_offsets", One("U8", "4", "0,4,8", 8), "more than two"},
      {"offsets_backwards", One("U8", "4", "4,0", 4), "backwards"},
      {"offset_negative", One("U8", "4", "-4,0", 4), "negative"},
      {"shape_negative", One("U8", "-4", "0,4", 4), "negative"},
      {"offset_fraction", One("U8", "4", "0,4.0", 4), "not whole"},
      {"offset_exponent", One("U8", "4", "0,4e0", 4), "not whole"},
      {"offset_leading_zero", One("U8", "4", "0,04", 4), "leading zero"},
      {"offset_2_to_64", One("U8", "4", "0,18446744073709551616", 4), "63 bits"},
      {"offset_2_to_63", One("U8", "4", "0,9223372036854775808", 4), "63 bits"},
      {"offset_beyond_file", One("U8", "5", "0,5", 4), "holds 4 bytes"},
      {"shape_too_small", One("U8", "3", "0,4", 4), "takes 3 bytes"},
      {"dtype_too_wide", One("F32", "4", "0,4", 4), "takes 16 bytes"},
      {"product_overflows", One("U8", "4294967296,4294967296", "0,0", 0), "63 bits"},
      {"product_wraps_to_size", One("U8", "4611686018427387904,4,4", "0,0", 0), "63 bits"},
      {"product_overflows_before_zero", One("U8", "4294967296,4294967296,0", "0,0", 0), "63 bits"},
      {"bits_overflow", One("F64", "1152921504606846976", "0,0", 0), "63 bits"},
      {"half_a_byte", One("F4", "3", "0,1", 1), "whole bytes"},
      {"hole_at_start", One("U8", "4", "1,5", 5), "hole"},
      {"hole_between",
       File("{" + Entry("a", "U8", "2", "0,2") + "," + Entry("b", "U8", "2", "3,5") + "}", 5),
       "hole"},
      {"overlap",
       File("{" + Entry("a", "U8", "3", "0,3") + "," + Entry("b", "U8", "3", "2,5") + "}", 5),
       "inside the tensor before"},
      {"same_bytes_twice",
       File("{" + Entry("a", "U8", "4", "0,4") + "," + Entry("b", "U8", "4", "0,4") + "}", 4),
       "inside the tensor before"},
      {"polyglot_tail", One("U8", "4", "0,4", 5), "but the file has"},
      {"data_without_tensors", File("{}", 1), "but the file has"},
  };
}

class SafetensorsAttackTest : public ::testing::TestWithParam<Attack> {};

TEST_P(SafetensorsAttackTest, IsRefused) {
  const auto header = Parse(GetParam().file);
  ASSERT_FALSE(header.ok());
  EXPECT_THAT(header.status().code(),
              ::testing::AnyOf(absl::StatusCode::kInvalidArgument, absl::StatusCode::kDataLoss));
  EXPECT_THAT(header.status().message(), HasSubstr(GetParam().message));
  EXPECT_THAT(header.status().message(), HasSubstr("the_file"));
  EXPECT_LT(header.status().message().size(), 1000u);
}

INSTANTIATE_TEST_SUITE_P(All, SafetensorsAttackTest, ::testing::ValuesIn(Attacks()),
                         [](const auto& info) { return info.param.name; });

TEST(SafetensorsHeaderTest, CutAnywhereIsRefused) {
  const std::string file =
      File("{\"__metadata__\":{\"format\":\"pt\"}," + Entry("a", "F32", "2", "0,8") + "," +
               Entry("b", "BF16", "1,1", "8,10") + "}",
           10);
  ASSERT_TRUE(Parse(file).ok());
  for (size_t n = 0; n < file.size(); ++n) {
    EXPECT_FALSE(Parse(file.substr(0, n)).ok()) << n;
    // The header alone cut, its length made to fit: JSON that ends early.
    if (n >= 8 && n < file.size() - 10) {
      EXPECT_FALSE(Parse(Length(n - 8) + file.substr(8, n - 8) + std::string(10, 'd')).ok()) << n;
    }
  }
  EXPECT_FALSE(Parse(file + "x").ok());
}

TEST(SafetensorsHeaderTest, NoFlippedBitOfTheHeaderMisleadsTheReader) {
  // A flipped bit may give another legal header (a name, a shape that swaps); then it must still
  // tile.
  const std::string file = File(
      "{" + Entry("a", "F32", "2,3", "0,24") + "," + Entry("b", "BF16", "1,1", "24,26") + "}", 26);
  int accepted = 0;
  for (size_t bit = 0; bit < 8 * (file.size() - 26); ++bit) {
    std::string flipped = file;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    auto header = Parse(flipped);
    if (!header.ok()) continue;
    ++accepted;
    int64_t end = header->data_start;
    for (const TensorInfo& tensor : header->tensors) {
      EXPECT_EQ(tensor.offset, end);
      EXPECT_EQ(tensor.bytes, tensor.elements() * DtypeBits(tensor.dtype) / 8);
      end += tensor.bytes;
    }
    EXPECT_EQ(end, static_cast<int64_t>(file.size()));
  }
  EXPECT_LT(accepted, 40);  // names and dtypes of equal width
}

TEST(Utf8Test, AcceptsExactlyTheScalarValues) {
  std::string text;
  for (uint32_t code = 0; code < 0x110000; code += code < 0x3000 ? 1 : 17) {
    if (code >= 0xd800 && code < 0xe000) continue;
    text.clear();
    AppendUtf8(code, &text);
    ASSERT_EQ(FirstInvalidUtf8(text), absl::string_view::npos) << code;
    ASSERT_NE(FirstInvalidUtf8(text.substr(0, text.size() - 1) + "("),
              text.size() == 1 ? 0 : absl::string_view::npos);
  }
  for (const char* bad : {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80",
                          "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
    EXPECT_EQ(FirstInvalidUtf8(absl::StrCat("12345678abc", bad)), 11u) << bad;
  }
}

}  // namespace
}  // namespace qlora::engine
