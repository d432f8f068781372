#include "engine/report/html_page.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/report/html_text.h"

namespace qlora::engine {
namespace {

// A chart is drawn twice: scaled down to a phone its letters would be too small to read.
constexpr double kWide = 760, kWideHeight = 340;
constexpr double kNarrow = 350, kNarrowHeight = 280;

constexpr absl::string_view kStyle = R"css(
:root{color-scheme:light dark;--ground:#fff;--ink:#1d2126;--soft:#5a626d;--edge:#dfe3e8;--card:#f6f7f9;
--good:#006b4f;--bad:#b23c00}
@media (prefers-color-scheme:dark){:root{--ground:#15181c;--ink:#e4e7eb;--soft:#9ba3ae;--edge:#30353d;
--card:#1d2126;--good:#3ecf9f;--bad:#ff9257}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:800px;margin:0 auto;padding:40px 20px 64px;overflow-wrap:anywhere}
h1{font-size:1.75rem;line-height:1.2;letter-spacing:-.01em;margin:0}
h2{font-size:1.2rem;line-height:1.3;margin:44px 0 12px}
p,ul{margin:0 0 14px;max-width:42em}
ul{padding-left:1.3em}
.subtitle{color:var(--soft);margin:8px 0 0}
header{margin:0 0 28px}
pre{margin:0 0 18px;padding:12px 14px;background:var(--card);border-radius:8px;font-size:.85rem;line-height:1.5;
white-space:pre-wrap;font-family:ui-monospace,"SF Mono",Menlo,Consolas,monospace}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0 0 22px}
dl div{background:var(--card);border-radius:8px;padding:12px 14px;min-width:0}
dt{color:var(--soft);font-size:.85rem;line-height:1.35}
dd{margin:2px 0 0;font-size:1.4rem;line-height:1.3;font-weight:600;font-variant-numeric:tabular-nums}
dd.note{font-size:.85rem;font-weight:400;color:var(--soft);line-height:1.4}
.good{color:var(--good)}.bad{color:var(--bad)}
figure{margin:0 0 26px}
figcaption{font-weight:600;margin:0 0 6px}
.wide svg,.narrow svg{display:block;width:100%;height:auto}
.narrow{display:none}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;list-style:none;margin:0 0 8px;padding:0;max-width:none;
font-size:.85rem;color:var(--soft)}
.legend li{display:flex;gap:7px;align-items:flex-start;min-width:0}
.legend svg{flex:none;width:24px;height:12px;margin-top:5px}
.scroll{overflow-x:auto;margin:0 0 22px}
table{border-collapse:collapse;font-size:.9rem;line-height:1.4;min-width:100%}
caption{text-align:left;font-weight:600;margin:0 0 6px;padding:0}
th,td{text-align:left;vertical-align:top;padding:7px 18px 7px 0;border-bottom:1px solid var(--edge)}
th:last-child,td:last-child{padding-right:0}
th{color:var(--soft);font-weight:500;vertical-align:bottom;overflow-wrap:normal}
td{min-width:7em;max-width:26em}
td:first-child:not(.number){min-width:11em}
.number{text-align:right;min-width:0;white-space:nowrap;font-variant-numeric:tabular-nums}
th.number{white-space:normal}
.marked td{font-weight:600}
@media (max-width:720px){main{padding:24px 20px 48px}h1{font-size:1.45rem}
.wide{display:none}.narrow{display:block;max-width:480px}}
@media print{main{max-width:none;padding:0}.scroll{overflow:visible}}
)css";

// Also keeps a browser from obeying what might have slipped through.
constexpr absl::string_view kPolicy =
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
    "'unsafe-inline'\">\n";

const char* ToneOf(KeyFigure::Tone tone) {
  switch (tone) {
    case KeyFigure::Tone::kPlain:
      return "<dd>";
    case KeyFigure::Tone::kGood:
      return "<dd class=\"good\">✓ ";
    case KeyFigure::Tone::kBad:
      return "<dd class=\"bad\">✗ ";
  }
  return "<dd>";
}

}  // namespace

HtmlPage::HtmlPage(absl::string_view title, absl::string_view subtitle)
    : title_(EscapeHtml(title)), subtitle_(EscapeHtml(subtitle)) {}

void HtmlPage::Heading(absl::string_view text) {
  absl::StrAppend(&body_, "<h2>", EscapeHtml(text), "</h2>\n");
}

void HtmlPage::Paragraph(absl::string_view text) {
  absl::StrAppend(&body_, "<p>", EscapeHtml(text), "</p>\n");
}

void HtmlPage::List(absl::Span<const std::string> items) {
  if (items.empty()) return;
  absl::StrAppend(&body_, "<ul>\n");
  for (const std::string& item : items) {
    absl::StrAppend(&body_, "<li>", EscapeHtml(item), "</li>\n");
  }
  absl::StrAppend(&body_, "</ul>\n");
}

void HtmlPage::Preformatted(absl::string_view text) {
  // A line break right behind the tag would be swallowed.
  absl::StrAppend(&body_, "<pre>\n", EscapeHtml(text), "</pre>\n");
}

void HtmlPage::Figures(absl::Span<const KeyFigure> figures) {
  if (figures.empty()) return;
  absl::StrAppend(&body_, "<dl>\n");
  for (const KeyFigure& figure : figures) {
    absl::StrAppend(&body_, "<div><dt>", EscapeHtml(figure.label), "</dt>", ToneOf(figure.tone),
                    EscapeHtml(figure.value), "</dd>");
    if (!figure.note.empty()) {
      absl::StrAppend(&body_, "<dd class=\"note\">", EscapeHtml(figure.note), "</dd>");
    }
    absl::StrAppend(&body_, "</div>\n");
  }
  absl::StrAppend(&body_, "</dl>\n");
}

void HtmlPage::Table(const HtmlTable& table) {
  const auto cell = [&](const char* tag, size_t column, absl::string_view text) {
    absl::StrAppend(&body_, "<", tag, table.columns[column].number ? " class=\"number\"" : "", ">",
                    EscapeHtml(text), "</", tag, ">");
  };
  absl::StrAppend(&body_, "<div class=\"scroll\" tabindex=\"0\"><table>\n");
  if (!table.caption.empty()) {
    absl::StrAppend(&body_, "<caption>", EscapeHtml(table.caption), "</caption>\n");
  }
  absl::StrAppend(&body_, "<thead><tr>");
  for (size_t i = 0; i < table.columns.size(); ++i) cell("th", i, table.columns[i].header);
  absl::StrAppend(&body_, "</tr></thead>\n<tbody>\n");
  for (size_t row = 0; row < table.rows.size(); ++row) {
    const bool marked = std::find(table.marked_rows.begin(), table.marked_rows.end(), row) !=
                        table.marked_rows.end();
    absl::StrAppend(&body_, marked ? "<tr class=\"marked\">" : "<tr>");
    for (size_t i = 0; i < table.columns.size(); ++i) cell("td", i, table.rows[row][i]);
    absl::StrAppend(&body_, "</tr>\n");
  }
  absl::StrAppend(&body_, "</tbody>\n</table></div>\n");
}

void HtmlPage::Figure(absl::string_view title, absl::string_view legend, absl::string_view wide,
                      absl::string_view narrow) {
  absl::StrAppend(&body_, "<figure><figcaption>", EscapeHtml(title), "</figcaption>\n", legend,
                  "<div class=\"wide\">", wide, "</div><div class=\"narrow\">", narrow,
                  "</div></figure>\n");
}

void HtmlPage::Chart(const PlotChart& chart) {
  std::string legend = "<ul class=\"legend\">\n";
  for (size_t i = 0; i < chart.series.size(); ++i) {
    absl::StrAppend(&legend, "<li><svg class=\"chart\" viewBox=\"0 0 24 12\" aria-hidden=\"true\">",
                    LegendMark(chart.series[i], i, 0, 0), "</svg><span>",
                    EscapeHtml(chart.series[i].name), "</span></li>\n");
  }
  absl::StrAppend(&legend, "</ul>\n");
  // One series is named by the title.
  Figure(chart.title, chart.series.size() > 1 ? legend : "", PlotSvg(chart, kWide, kWideHeight),
         PlotSvg(chart, kNarrow, kNarrowHeight));
}

void HtmlPage::Chart(const BarChart& chart) {
  Figure(chart.title, "", BarSvg(chart, kWide), BarSvg(chart, kNarrow));
}

std::string HtmlPage::Finish() const {
  return absl::StrCat(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n", kPolicy,
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>", title_,
      "</title>\n<style>", kStyle, ChartStyle(), "</style>\n</head>\n<body>\n<main>\n<header><h1>",
      title_, "</h1>\n",
      subtitle_.empty() ? "" : absl::StrCat("<p class=\"subtitle\">", subtitle_, "</p>"),
      "</header>\n", body_, "</main>\n</body>\n</html>\n");
}

}  // namespace qlora::engine
