// A report as one self-contained HTML file: no network, no script, light and dark as the reader
// prefers, from a phone's width on. The same calls give the same bytes. All texts are escaped, so
// that names and samples from a user's files are shown and never obeyed.

#ifndef QLORA_ENGINE_REPORT_HTML_PAGE_H_
#define QLORA_ENGINE_REPORT_HTML_PAGE_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/report/html_chart.h"

namespace qlora::engine {

// A number to be seen first.
struct KeyFigure {
  enum class Tone { kPlain, kGood, kBad };  // good and bad are marked by a sign too
  std::string label;
  std::string value;  // with its unit
  std::string note;   // below it, may be empty
  Tone tone = Tone::kPlain;
};

struct HtmlTable {
  struct Column {
    std::string header;
    bool number = false;  // aligned at the right, in figures of one width
  };
  std::string caption;  // may be empty
  std::vector<Column> columns;
  std::vector<std::vector<std::string>> rows;  // as many cells as columns
  std::vector<size_t> marked_rows;             // in bold: the chosen one, the sum
};

class HtmlPage {
 public:
  // `subtitle` says of what and when; may be empty.
  explicit HtmlPage(absl::string_view title, absl::string_view subtitle = "");

  void Heading(absl::string_view text);
  void Paragraph(absl::string_view text);
  void List(absl::Span<const std::string> items);
  // As it stands, in letters of one width: a sample, a job, a command.
  void Preformatted(absl::string_view text);
  void Figures(absl::Span<const KeyFigure> figures);
  // A wide table scrolls in a box of its own.
  void Table(const HtmlTable& table);
  void Chart(const PlotChart& chart);
  void Chart(const BarChart& chart);

  // The whole file.
  std::string Finish() const;

 private:
  void Figure(absl::string_view title, absl::string_view legend, absl::string_view wide,
              absl::string_view narrow);

  const std::string title_, subtitle_;
  std::string body_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_HTML_PAGE_H_
