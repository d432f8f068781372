#include "engine/data/share_dataset.h"

#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace qlora::engine {
namespace {

// Samples go in blocks that are full at this size.
constexpr size_t kBlockBytes = size_t{4} << 20;

// One walk over the fields for both ways: they are appended to a block, or taken from one.
class Writer {
 public:
  explicit Writer(std::string* block) : block_(*block) {}
  template <class T>
  void Field(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    block_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  template <class Container>
  void Elements(const Container& values) {
    Field(int64_t(values.size()));
    block_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0]));
  }

 private:
  std::string& block_;
};

class Reader {
 public:
  explicit Reader(const std::string& block) : block_(block) {}
  bool IsAtEnd() const { return at_ == block_.size(); }
  template <class T>
  void Field(T& value) {
    std::memcpy(&value, block_.data() + at_, sizeof(T));
    at_ += sizeof(T);
  }
  template <class Container>
  void Elements(Container& values) {
    int64_t count;
    Field(count);
    values.resize(size_t(count));
    std::memcpy(values.data(), block_.data() + at_, values.size() * sizeof(values[0]));
    at_ += values.size() * sizeof(values[0]);
  }

 private:
  const std::string& block_;
  size_t at_ = 0;
};

void VisitSample(auto&& archive, auto& sample) {
  archive.Field(sample.line), archive.Field(sample.prompt);
  archive.Elements(sample.ids);
  archive.Elements(sample.trained);
}

void VisitReport(auto&& archive, auto& r) {
  archive.Field(r.records), archive.Field(r.samples), archive.Field(r.truncated);
  archive.Field(r.without_target), archive.Field(r.dropped_long), archive.Field(r.duplicates);
  archive.Field(r.tokens), archive.Field(r.trained_tokens), archive.Field(r.longest);
  archive.Elements(r.lengths);
  archive.Field(r.format);
  archive.Elements(r.chat_format), archive.Elements(r.sha256);
}

absl::Status ShareBlock(HostExchange* exchange, absl::Span<const int> ranks, std::string* block) {
  int64_t size = int64_t(block->size());
  if (absl::Status s = exchange->Broadcast(&size, sizeof(size), ranks); !s.ok()) return s;
  block->resize(size_t(size));
  return exchange->Broadcast(block->data(), size, ranks);
}

}  // namespace

absl::Status ShareDataset(HostExchange* exchange, absl::Span<const int> ranks, Dataset* dataset) {
  const bool sends = exchange->comm().rank() == ranks.front();
  std::string block;
  if (sends) VisitReport(Writer(&block), dataset->report);
  if (absl::Status s = ShareBlock(exchange, ranks, &block); !s.ok()) return s;
  if (!sends) VisitReport(Reader(block), dataset->report);

  auto next = dataset->samples.begin();
  while (true) {
    block.clear();
    while (sends && next != dataset->samples.end() && block.size() < kBlockBytes) {
      VisitSample(Writer(&block), *next++);
    }
    if (absl::Status s = ShareBlock(exchange, ranks, &block); !s.ok()) return s;
    if (block.empty()) return absl::OkStatus();  // all have been sent
    Reader reader(block);
    while (!sends && !reader.IsAtEnd()) VisitSample(reader, dataset->samples.emplace_back());
  }
}

}  // namespace qlora::engine
