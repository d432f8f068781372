// Byte-pair encoding of one pre-tokenized word.
//
// Merging takes the pair of neighbouring symbols with the lowest rank, the leftmost of equals,
// until no pair is left that merges. Symbols start as single code points of the word (or, for
// byte-level vocabularies, as single bytes, each standing for its letter of the byte-level
// alphabet).
#ifndef QLORA_ENGINE_TEXT_BPE_H_
#define QLORA_ENGINE_TEXT_BPE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qlora::engine {

// `model` of a tokenizer.json.
struct BpeSpec {
  absl::flat_hash_map<std::string, int32_t> vocab;
  std::vector<std::pair<std::string, std::string>>
      merges;             // rank = index; of equals the later counts
  std::string unk_token;  // empty: none
  bool fuse_unk = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
  // Ids that no word becomes, neither by merging nor through ignore_merges: control tokens.
  absl::flat_hash_set<int32_t> control;
};

class Bpe {
 public:
  // DataLoss where a merge names or makes a token that `spec.vocab` lacks, or unk_token is
  // missing.
  static absl::StatusOr<std::unique_ptr<Bpe>> Make(const BpeSpec& spec);

  // Whether every byte has its one-character token, as EncodeBytes needs.
  bool has_all_bytes() const { return has_all_bytes_; }

  // Appends the ids of `word`, well-formed UTF-8. Characters without a token become their bytes
  // (with byte_fallback), unk, or nothing. Thread-safe.
  void EncodeText(absl::string_view word, std::vector<int32_t>& ids) const;

  // Appends the ids of the word whose byte-level spelling stands for `bytes`. has_all_bytes() only.
  // Thread-safe; short words are kept in a cache of the calling thread.
  void EncodeBytes(absl::string_view bytes, std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t id;
  };

  Bpe() = default;

  const Merge* FindMerge(int32_t left, int32_t right) const;
  void AppendSymbols(absl::string_view word, std::vector<int32_t>& symbols) const;
  // Merges `symbols` as far as it goes.
  void MergeAll(std::vector<int32_t>& symbols) const;
  void MergeShort(std::vector<int32_t>& symbols) const;
  void MergeLong(std::vector<int32_t>& symbols) const;

  // Slots of the merge table: linear probing over a power of two, at most half full.
  struct Slot {
    uint64_t pair;
    Merge merge;
  };

  uint64_t serial_ = 0;  // tells the words of several models apart in a thread's cache
  std::vector<Slot> slots_;
  uint64_t slot_mask_ = 0;
  absl::flat_hash_map<char32_t, int32_t> char_ids_;
  int32_t byte_ids_[256];      // token of the byte's letter in the byte-level alphabet, -1: none
  int32_t fallback_ids_[256];  // token <0xHH>, -1: none
  bool has_all_bytes_ = false;
  bool byte_fallback_ = false;
  bool fuse_unk_ = false;
  int32_t unk_id_ = -1;
  // With ignore_merges: words that are tokens as they stand, as text and as bytes.
  bool ignore_merges_ = false;
  absl::flat_hash_map<std::string, int32_t> words_;
  absl::flat_hash_map<std::string, int32_t> byte_words_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_BPE_H_
