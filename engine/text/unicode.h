// Unicode 16 properties of code points: general category, white space, word characters.
#ifndef QLORA_ENGINE_TEXT_UNICODE_H_
#define QLORA_ENGINE_TEXT_UNICODE_H_

#include <cstdint>
#include <memory>

namespace qlora::engine {

// General categories, in the order of generate_unicode_tables.py.
enum class Category : uint8_t {
  kCn,
  kCc,
  kCf,
  kCo,
  kCs,
  kLl,
  kLm,
  kLo,
  kLt,
  kLu,
  kMc,
  kMe,
  kMn,
  kNd,
  kNl,
  kNo,
  kPc,
  kPd,
  kPe,
  kPf,
  kPi,
  kPo,
  kPs,
  kSc,
  kSk,
  kSm,
  kSo,
  kZl,
  kZp,
  kZs,
};

// A set of classes: bit i is category i; White_Space is one more.
using ClassMask = uint32_t;

constexpr ClassMask MaskOf(Category category) { return 1u << static_cast<int>(category); }

inline constexpr ClassMask kWhiteSpace = 1u << 31;  // U+0009-D, 20, 85, A0 and the others; not 180E
inline constexpr ClassMask kCaselessLetter = MaskOf(Category::kLm) | MaskOf(Category::kLo);
inline constexpr ClassMask kLetter =
    MaskOf(Category::kLl) | MaskOf(Category::kLu) | MaskOf(Category::kLt) | kCaselessLetter;
inline constexpr ClassMask kMark =
    MaskOf(Category::kMc) | MaskOf(Category::kMe) | MaskOf(Category::kMn);
inline constexpr ClassMask kNumber =
    MaskOf(Category::kNd) | MaskOf(Category::kNl) | MaskOf(Category::kNo);

// Classes of every code point, as a table of pages: 8 bits hold a category and the white-space
// flag.
class UnicodeTable {
 public:
  static const UnicodeTable& Get();

  // The category's bit, and kWhiteSpace where it applies. code_point <= U+10FFFF.
  ClassMask Classes(char32_t code_point) const {
    return masks_[pages_[index_[code_point >> 7]][code_point & 127]];
  }
  Category CategoryOf(char32_t code_point) const {
    return static_cast<Category>(pages_[index_[code_point >> 7]][code_point & 127] & 31);
  }

  UnicodeTable();

 private:
  ClassMask masks_[64];
  uint16_t index_[0x110000 >> 7];
  std::unique_ptr<uint8_t[][128]> pages_;
};

inline bool IsWhiteSpace(char32_t code_point) {
  return (UnicodeTable::Get().Classes(code_point) & kWhiteSpace) != 0;
}

// \w as Unicode's regular-expression guidelines define it (UTS 18, annex C): alphabetic, marks,
// decimal digits, connector punctuation, and the two joiners.
bool IsWordCharacter(char32_t code_point);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_UNICODE_H_
