#include "engine/text/bpe.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <queue>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/text/byte_level.h"
#include "engine/text/utf8.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

// Up to this many symbols a scan for the best pair after each merge beats a heap.
constexpr size_t kShortWord = 32;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();
constexpr uint64_t kEmptySlot = std::numeric_limits<uint64_t>::max();

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t HashPair(uint64_t pair) {
  pair *= 0x9E3779B97F4A7C15ull;  // 2^64 / golden ratio
  return pair ^ pair >> 32;
}

// A thread's most recent words: direct-mapped, 1 MiB a thread. Words of a text follow Zipf's law,
// so nearly all lookups hit.
struct CachedWord {
  static constexpr size_t kMaxBytes = 22;
  static constexpr size_t kMaxIds = 8;
  uint64_t serial = 0;
  uint8_t size = 0;
  uint8_t count = 0;
  char bytes[kMaxBytes];
  int32_t ids[kMaxIds];
};
static_assert(sizeof(CachedWord) == 64, "a cache line each");
constexpr size_t kCachedWords = 16384;

CachedWord& CacheSlot(absl::string_view word) {
  thread_local std::vector<CachedWord> cache(kCachedWords);
  return cache[absl::HashOf(word) % kCachedWords];
}

}  // namespace

absl::StatusOr<std::unique_ptr<Bpe>> Bpe::Make(const BpeSpec& spec) {
  static std::atomic<uint64_t> serials{0};
  std::unique_ptr<Bpe> bpe(new Bpe);
  bpe->serial_ = ++serials;
  bpe->byte_fallback_ = spec.byte_fallback;
  bpe->fuse_unk_ = spec.fuse_unk;
  bpe->ignore_merges_ = spec.ignore_merges;
  const auto find = [&](const std::string& token) {
    const auto it = spec.vocab.find(token);
    return it == spec.vocab.end() ? -1 : it->second;
  };
  if (!spec.unk_token.empty()) {
    bpe->unk_id_ = find(spec.unk_token);
    if (bpe->unk_id_ < 0) {
      return proto::BadDataError(
          absl::StrCat("model.unk_token: `", spec.unk_token, "` is not in model.vocab"));
    }
  }

  size_t slots = 16;
  while (slots < 2 * spec.merges.size()) slots *= 2;
  bpe->slots_.assign(slots, {kEmptySlot, {}});
  bpe->slot_mask_ = slots - 1;
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const auto& [left, right] = spec.merges[rank];
    const int32_t left_id = find(left);
    const int32_t right_id = find(right);
    const int32_t merged_id = find(left + right);
    if (left_id < 0 || right_id < 0 || merged_id < 0) {
      return proto::BadDataError(absl::StrCat("model.merges[", rank, "]: `",
                                              left_id < 0    ? left
                                              : right_id < 0 ? right
                                                             : left + right,
                                              "` is not in model.vocab"));
    }
    if (spec.control.contains(merged_id)) continue;
    const uint64_t pair = PairKey(left_id, right_id);
    uint64_t slot = HashPair(pair) & bpe->slot_mask_;
    while (bpe->slots_[slot].pair != kEmptySlot && bpe->slots_[slot].pair != pair) {
      slot = (slot + 1) & bpe->slot_mask_;
    }
    bpe->slots_[slot] = {pair, {static_cast<int32_t>(rank), merged_id}};
  }

  bpe->has_all_bytes_ = true;
  for (int b = 0; b < 256; ++b) {
    std::string letter;
    AppendUtf8(ByteLevelChar(static_cast<uint8_t>(b)), letter);
    bpe->byte_ids_[b] = find(letter);
    bpe->has_all_bytes_ &= bpe->byte_ids_[b] >= 0;
    bpe->fallback_ids_[b] = find(absl::StrFormat("<0x%02X>", b));
  }
  for (const auto& [token, id] : spec.vocab) {
    if (!token.empty() && Utf8At(token, 0).size == token.size()) {
      bpe->char_ids_[Utf8At(token, 0).value] = id;
    }
    if (!spec.ignore_merges || spec.control.contains(id)) continue;
    bpe->words_[token] = id;
    if (std::optional<std::string> bytes = FromByteLevel(token)) bpe->byte_words_[*bytes] = id;
  }
  return bpe;
}

const Bpe::Merge* Bpe::FindMerge(int32_t left, int32_t right) const {
  const uint64_t pair = PairKey(left, right);
  for (uint64_t slot = HashPair(pair) & slot_mask_;; slot = (slot + 1) & slot_mask_) {
    if (slots_[slot].pair == pair) return &slots_[slot].merge;
    if (slots_[slot].pair == kEmptySlot) return nullptr;
  }
}

void Bpe::EncodeText(absl::string_view word, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    if (const auto it = words_.find(word); it != words_.end()) {
      ids.push_back(it->second);
      return;
    }
  }
  std::vector<int32_t> symbols;
  symbols.reserve(word.size());
  AppendSymbols(word, symbols);
  MergeAll(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void Bpe::AppendSymbols(absl::string_view word, std::vector<int32_t>& symbols) const {
  bool unk_pending = false;
  for (size_t at = 0; at < word.size();) {
    const CodePoint c = Utf8At(word, at);
    const absl::string_view bytes = word.substr(at, c.size);
    at += c.size;
    if (const auto it = char_ids_.find(c.value); it != char_ids_.end()) {
      if (unk_pending) symbols.push_back(unk_id_);
      unk_pending = false;
      symbols.push_back(it->second);
      continue;
    }
    if (byte_fallback_ && std::all_of(bytes.begin(), bytes.end(), [&](char b) {
          return fallback_ids_[static_cast<uint8_t>(b)] >= 0;
        })) {
      // A pending unk stays pending and so comes after these bytes, as in the tokenizers library.
      for (const char b : bytes) symbols.push_back(fallback_ids_[static_cast<uint8_t>(b)]);
      continue;
    }
    if (unk_id_ < 0) continue;
    if (unk_pending && !fuse_unk_) symbols.push_back(unk_id_);
    unk_pending = true;
  }
  if (unk_pending) symbols.push_back(unk_id_);
}

void Bpe::EncodeBytes(absl::string_view bytes, std::vector<int32_t>& ids) const {
  const bool cacheable = bytes.size() <= CachedWord::kMaxBytes;
  CachedWord* cached = nullptr;
  if (cacheable) {
    cached = &CacheSlot(bytes);
    if (cached->serial == serial_ && cached->size == bytes.size() &&
        std::memcmp(cached->bytes, bytes.data(), bytes.size()) == 0) {
      ids.insert(ids.end(), cached->ids, cached->ids + cached->count);
      return;
    }
  }
  thread_local std::vector<int32_t> symbols;
  symbols.clear();
  const auto whole = ignore_merges_ ? byte_words_.find(bytes) : byte_words_.end();
  if (whole != byte_words_.end()) {
    symbols.push_back(whole->second);
  } else {
    for (const char b : bytes) symbols.push_back(byte_ids_[static_cast<uint8_t>(b)]);
    MergeAll(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
  if (cacheable && symbols.size() <= CachedWord::kMaxIds) {
    cached->serial = serial_;
    cached->size = static_cast<uint8_t>(bytes.size());
    cached->count = static_cast<uint8_t>(symbols.size());
    std::memcpy(cached->bytes, bytes.data(), bytes.size());
    std::copy(symbols.begin(), symbols.end(), cached->ids);
  }
}

void Bpe::MergeAll(std::vector<int32_t>& symbols) const {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kShortWord) {
    MergeShort(symbols);
  } else {
    MergeLong(symbols);
  }
}

void Bpe::MergeShort(std::vector<int32_t>& symbols) const {
  constexpr Merge kNone = {kNoRank, -1};
  Merge merges[kShortWord];  // of the pair (i, i + 1)
  size_t size = symbols.size();
  const auto look_up = [&](size_t i) {
    const Merge* const merge = FindMerge(symbols[i], symbols[i + 1]);
    return merge == nullptr ? kNone : *merge;
  };
  for (size_t i = 0; i + 1 < size; ++i) merges[i] = look_up(i);
  while (size > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < size; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNoRank) break;
    symbols[best] = merges[best].id;
    --size;
    for (size_t i = best + 1; i < size; ++i) symbols[i] = symbols[i + 1];
    for (size_t i = best + 1; i + 1 < size; ++i) merges[i] = merges[i + 1];
    if (best + 1 < size) merges[best] = look_up(best);
    if (best > 0) merges[best - 1] = look_up(best - 1);
  }
  symbols.resize(size);
}

void Bpe::MergeLong(std::vector<int32_t>& symbols) const {
  // Symbols in a doubly linked list over their first positions; -1 ends it; a merged-away symbol
  // has id -1.
  struct Node {
    int32_t id;
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    int32_t rank;
    int32_t position;
    int32_t id;  // what the pair becomes: stale when the pair there no longer becomes that
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  const int32_t size = static_cast<int32_t>(symbols.size());
  std::vector<Node> nodes(size);
  for (int32_t i = 0; i < size; ++i) nodes[i] = {symbols[i], i - 1, i + 1 < size ? i + 1 : -1};
  std::vector<Candidate> initial;
  initial.reserve(size);
  const auto candidate = [&](int32_t at, auto&& push) {
    if (at < 0 || nodes[at].next < 0) return;
    if (const Merge* const merge = FindMerge(nodes[at].id, nodes[nodes[at].next].id)) {
      push(Candidate{merge->rank, at, merge->id});
    }
  };
  for (int32_t i = 0; i + 1 < size; ++i) {
    candidate(i, [&](const Candidate& c) { initial.push_back(c); });
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(),
                                                                               std::move(initial));
  const auto push = [&](const Candidate& c) { queue.push(c); };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Node& left = nodes[top.position];
    if (left.id < 0 || left.next < 0) continue;
    Node& right = nodes[left.next];
    const Merge* const merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->id != top.id) continue;
    left.id = top.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) nodes[left.next].previous = top.position;
    candidate(left.previous, push);
    candidate(top.position, push);
  }
  symbols.clear();
  for (int32_t at = 0; at >= 0; at = nodes[at].next) symbols.push_back(nodes[at].id);
}

}  // namespace qlora::engine
