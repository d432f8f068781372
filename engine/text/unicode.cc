#include "engine/text/unicode.h"

#include <cstddef>
#include <cstring>
#include <iterator>
#include <vector>

namespace qlora::engine {
namespace {

constexpr uint32_t kRuns[] = {
#include "engine/text/unicode_categories.inc"
};
constexpr uint8_t kWhiteSpaceFlag = 32;
constexpr size_t kPageSize = 128;

// Property White_Space (PropList, Unicode 16).
constexpr bool HasWhiteSpaceProperty(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

}  // namespace

UnicodeTable::UnicodeTable() {
  for (int value = 0; value < 64; ++value) {
    masks_[value] = (1u << (value & 31)) | ((value & kWhiteSpaceFlag) ? kWhiteSpace : 0);
  }
  std::vector<uint8_t> pages;
  size_t run = 0;
  uint8_t page[kPageSize];
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (run + 1 < std::size(kRuns) && kRuns[run + 1] >> 5 == c) ++run;
    page[c % kPageSize] = (kRuns[run] & 31) | (HasWhiteSpaceProperty(c) ? kWhiteSpaceFlag : 0);
    if (c % kPageSize != kPageSize - 1) continue;
    // Pages repeat in long runs (CJK, private use): comparing with the last one finds most of them.
    if (pages.empty() || std::memcmp(page, &pages[pages.size() - kPageSize], kPageSize) != 0) {
      pages.insert(pages.end(), page, page + kPageSize);
    }
    index_[c / kPageSize] = static_cast<uint16_t>(pages.size() / kPageSize - 1);
  }
  pages_ = std::make_unique<uint8_t[][kPageSize]>(pages.size() / kPageSize);
  std::memcpy(pages_.get(), pages.data(), pages.size());
}

const UnicodeTable& UnicodeTable::Get() {
  static const auto* const table = new UnicodeTable;
  return *table;
}

bool IsWordCharacter(char32_t c) {
  constexpr ClassMask kWord =
      kLetter | kMark | MaskOf(Category::kNd) | MaskOf(Category::kNl) | MaskOf(Category::kPc);
  if (UnicodeTable::Get().Classes(c) & kWord) return true;
  // Alphabetic without being letter, mark or number: circled and squared Latin letters; and the
  // joiners.
  return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
         (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189) || c == 0x200C ||
         c == 0x200D;
}

}  // namespace qlora::engine
