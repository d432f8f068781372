#include "engine/report/html_page.h"

#include "engine/report/html_text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(EscapeHtml, LeavesNoMarkup) {
  EXPECT_EQ(EscapeHtml("<script>\"&'</script>"), "&lt;script&gt;&quot;&amp;&#39;&lt;/script&gt;");
  EXPECT_EQ(EscapeHtml("größer 中\n"), "größer 中\n");
}

TEST(EscapeHtml, ReplacesWhatATextMayNotHold) {
  EXPECT_EQ(EscapeHtml(std::string("a\0b\x1b\xff", 5)), "a\uFFFDb\uFFFD\uFFFD");
  EXPECT_EQ(EscapeHtml("\u202Etxt.exe\u2066"), "\uFFFDtxt.exe\uFFFD");
}

TEST(FitText, CutsBetweenCodePoints) {
  EXPECT_EQ(FitText("short", 10), "short");
  EXPECT_EQ(FitText("中中中中中中", 4), "中中…");
}

HtmlPage Everything(const std::string& text) {
  HtmlPage page(text, text);
  page.Heading(text);
  page.Paragraph(text);
  page.List({text});
  page.Preformatted(text);
  page.Figures({{.label = text, .value = text, .note = text, .tone = KeyFigure::Tone::kBad}});
  page.Table({.caption = text, .columns = {{text}, {text, true}}, .rows = {{text, text}}});
  page.Chart(
      PlotChart{.title = text,
                .x_label = text,
                .y_label = text,
                .series = {{text, ChartSeries::Marks::kLineAndPoints, {{1, 1, text}, {2, 2, text}}},
                           {text, ChartSeries::Marks::kPoints, {{1, 2}}}}});
  page.Chart(BarChart{.title = text, .bars = {{.label = text, .value = 1, .text = text}}});
  return page;
}

TEST(HtmlPage, ShowsHostileTextsAndObeysNone) {
  const std::string attack = "\"'><img src=http://x onerror=alert(1)><!-- </style>";
  const std::string page = Everything(attack).Finish();
  EXPECT_THAT(page, HasSubstr(EscapeHtml(attack)));
  EXPECT_THAT(page, Not(HasSubstr("<img")));
  EXPECT_THAT(page, Not(HasSubstr("<!--")));
  // One of its own.
  EXPECT_EQ(page.find("</style>"), page.rfind("</style>"));
}

TEST(HtmlPage, RefersToNothingOutside) {
  const std::string page = Everything("x").Finish();
  for (const char* reference : {"http:", "https:", "url(", "src=", "href=", "@import", "<script"}) {
    EXPECT_THAT(page, Not(HasSubstr(reference)));
  }
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
}

TEST(HtmlPage, SameCallsGiveTheSameBytes) {
  EXPECT_EQ(Everything("a").Finish(), Everything("a").Finish());
}

TEST(HtmlPage, AlignsNumbersAndMarksRows) {
  HtmlPage page("t");
  page.Table({.columns = {{"name"}, {"bytes", true}},
              .rows = {{"base", "12"}, {"sum", "13"}},
              .marked_rows = {1}});
  EXPECT_THAT(page.Finish(), HasSubstr("<tr><td>base</td><td class=\"number\">12</td></tr>\n"
                                       "<tr class=\"marked\"><td>sum</td>"));
}

}  // namespace
}  // namespace qlora::engine
