#include "engine/data/describe.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/data/dataset.h"

namespace qlora::engine {
namespace {

void Note(int64_t count, absl::string_view what, std::string& text) {
  if (count > 0) absl::StrAppendFormat(&text, "  %d %s\n", count, what);
}

}  // namespace

std::string DescribeDataset(const DatasetReport& report) {
  std::string text = absl::StrCat(report.samples, " samples of ", report.records, " records, ",
                                  proto::DataFormat::Value_Name(report.format));
  if (!report.chat_format.empty()) absl::StrAppend(&text, " as ", report.chat_format);
  const double share =
      report.tokens == 0 ? 0 : 100.0 * static_cast<double>(report.trained_tokens) / report.tokens;
  absl::StrAppendFormat(&text,
                        "\n  %d tokens, %d of them trained on (%.1f %%), longest sample %d\n",
                        report.tokens, report.trained_tokens, share, report.longest);
  Note(report.truncated, "cut to max_length", text);
  Note(report.dropped_long, "left out: longer than max_length", text);
  Note(report.without_target, "left out: no token to train on", text);
  Note(report.duplicates, "equal to an earlier sample", text);
  const int64_t most =
      report.lengths.empty() ? 0 : *std::max_element(report.lengths.begin(), report.lengths.end());
  for (size_t b = 0; b < report.lengths.size(); ++b) {
    if (report.lengths[b] == 0) continue;
    constexpr int64_t kBarWidth = 40;
    const std::string bar((report.lengths[b] * kBarWidth + most - 1) / most, '#');
    absl::StrAppendFormat(&text, "  %7d..%-7d %s %d\n", int64_t{1} << b, (int64_t{2} << b) - 1, bar,
                          report.lengths[b]);
  }
  return text;
}

std::string DescribeSample(const Sample& sample, const Tokenizer& tokenizer, absl::string_view open,
                           absl::string_view close) {
  // Decoded run by run: a token alone may be half of a character.
  std::string text;
  size_t begin = 0;
  while (begin < sample.ids.size()) {
    size_t end = begin;
    while (end < sample.ids.size() && sample.trained[end] == sample.trained[begin]) ++end;
    const std::string run = tokenizer.Decode(
        absl::MakeConstSpan(sample.ids).subspan(begin, end - begin), /*skip_special=*/false);
    if (sample.trained[begin]) {
      absl::StrAppend(&text, open, run, close);
    } else {
      absl::StrAppend(&text, run);
    }
    begin = end;
  }
  return text;
}

}  // namespace qlora::engine
