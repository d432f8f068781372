#include "engine/text/unicode_normal_form.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/text/utf8.h"

namespace qlora::engine {
namespace {

constexpr uint32_t kEntries[] = {
#include "engine/text/unicode_canonical.inc"
};

// Hangul syllables compose and decompose by arithmetic (Unicode 16, section 3.12).
constexpr char32_t kSBase = 0xAC00, kLBase = 0x1100, kVBase = 0x1161, kTBase = 0x11A7;
constexpr char32_t kLCount = 19, kVCount = 21, kTCount = 28;
constexpr char32_t kSCount = kLCount * kVCount * kTCount;

struct Entry {
  uint8_t combining_class = 0;
  uint8_t parts = 0;
  char32_t part[2] = {0, 0};
};

class CanonicalData {
 public:
  static const CanonicalData& Get() {
    static const auto* const data = new CanonicalData;
    return *data;
  }

  CanonicalData() : unsafe_(0x110000 / 8) {
    for (size_t i = 0; i < std::size(kEntries);) {
      const uint32_t head = kEntries[i++];
      const char32_t c = head >> 11;
      Entry& entry = entries_[c];
      entry.combining_class = head >> 3 & 0xFF;
      entry.parts = head >> 1 & 3;
      for (int p = 0; p < entry.parts; ++p) entry.part[p] = kEntries[i++];
      const bool primary = head & 1;
      if (primary) {
        composites_[Pair(entry.part[0], entry.part[1])] = c;
        MarkUnsafe(entry.part[1]);
      }
      if (entry.combining_class != 0 || (entry.parts > 0 && !primary)) MarkUnsafe(c);
    }
    for (char32_t c = kVBase; c < kVBase + kVCount; ++c) MarkUnsafe(c);
    for (char32_t c = kTBase + 1; c < kTBase + kTCount; ++c) MarkUnsafe(c);
  }

  // True when text that holds `c` may not be in NFC: it combines, reorders or decomposes for good.
  bool Unsafe(char32_t c) const { return unsafe_[c >> 3] >> (c & 7) & 1; }

  const Entry* Find(char32_t c) const {
    const auto it = entries_.find(c);
    return it == entries_.end() ? nullptr : &it->second;
  }

  uint8_t CombiningClass(char32_t c) const {
    const Entry* const entry = Find(c);
    return entry == nullptr ? 0 : entry->combining_class;
  }

  // The composite of the two, or 0.
  char32_t Compose(char32_t a, char32_t b) const {
    if (a >= kLBase && a < kLBase + kLCount && b >= kVBase && b < kVBase + kVCount) {
      return kSBase + ((a - kLBase) * kVCount + (b - kVBase)) * kTCount;
    }
    if (a >= kSBase && a < kSBase + kSCount && (a - kSBase) % kTCount == 0 && b > kTBase &&
        b < kTBase + kTCount) {
      return a + (b - kTBase);
    }
    const auto it = composites_.find(Pair(a, b));
    return it == composites_.end() ? 0 : it->second;
  }

 private:
  static uint64_t Pair(char32_t a, char32_t b) { return static_cast<uint64_t>(a) << 32 | b; }
  void MarkUnsafe(char32_t c) { unsafe_[c >> 3] |= 1 << (c & 7); }

  absl::flat_hash_map<char32_t, Entry> entries_;
  absl::flat_hash_map<uint64_t, char32_t> composites_;
  std::vector<uint8_t> unsafe_;  // a bit per code point
};

struct Char {
  char32_t value;
  uint8_t combining_class;
};

void Decompose(const CanonicalData& data, char32_t c, std::vector<Char>& out) {
  if (c >= kSBase && c < kSBase + kSCount) {
    const char32_t s = c - kSBase;
    out.push_back({kLBase + s / (kVCount * kTCount), 0});
    out.push_back({kVBase + s % (kVCount * kTCount) / kTCount, 0});
    if (s % kTCount != 0) out.push_back({kTBase + s % kTCount, 0});
    return;
  }
  const Entry* const entry = data.Find(c);
  if (entry == nullptr || entry->parts == 0) {
    out.push_back({c, entry == nullptr ? uint8_t{0} : entry->combining_class});
    return;
  }
  for (int p = 0; p < entry->parts; ++p) Decompose(data, entry->part[p], out);
}

// Full decomposition in canonical order.
std::vector<Char> Decomposed(const CanonicalData& data, absl::string_view text) {
  std::vector<Char> chars;
  chars.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = Utf8At(text, at);
    at += c.size;
    if (c.value < 0xC0) {
      chars.push_back({c.value, 0});
    } else {
      Decompose(data, c.value, chars);
    }
  }
  const auto is_starter = [](const Char& c) { return c.combining_class == 0; };
  for (auto begin = chars.begin(); begin != chars.end();) {
    begin = std::find_if_not(begin, chars.end(), is_starter);
    const auto end = std::find_if(begin, chars.end(), is_starter);
    std::stable_sort(begin, end, [](const Char& a, const Char& b) {
      return a.combining_class < b.combining_class;
    });
    begin = end;
  }
  return chars;
}

// Canonical composition in place (UAX 15, D117): a character joins the last starter unless
// something of the same or a higher class, or a starter, stands between.
void Compose(const CanonicalData& data, std::vector<Char>& chars) {
  size_t size = 0;
  size_t starter = SIZE_MAX;
  for (const Char c : chars) {
    if (starter != SIZE_MAX) {
      const bool blocked =
          size - 1 > starter && chars[size - 1].combining_class >= c.combining_class;
      if (const char32_t composite = blocked ? 0 : data.Compose(chars[starter].value, c.value)) {
        chars[starter].value = composite;
        continue;
      }
    }
    if (c.combining_class == 0) starter = size;
    chars[size++] = c;
  }
  chars.resize(size);
}

std::string Joined(const std::vector<Char>& chars, size_t size_hint) {
  std::string out;
  out.reserve(size_hint);
  for (const Char& c : chars) AppendUtf8(c.value, out);
  return out;
}

}  // namespace

std::string ToNfc(absl::string_view text) {
  const CanonicalData& data = CanonicalData::Get();
  bool safe = true;
  for (size_t at = 0; at < text.size() && safe;) {
    const CodePoint c = Utf8At(text, at);
    at += c.size;
    safe = c.value < 0x300 || !data.Unsafe(c.value);
  }
  if (safe) return std::string(text);
  std::vector<Char> chars = Decomposed(data, text);
  Compose(data, chars);
  return Joined(chars, text.size());
}

std::string ToNfd(absl::string_view text) {
  return Joined(Decomposed(CanonicalData::Get(), text), text.size());
}

}  // namespace qlora::engine
