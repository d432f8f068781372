// Text as HTML and SVG carry it.

#ifndef QLORA_ENGINE_REPORT_HTML_TEXT_H_
#define QLORA_ENGINE_REPORT_HTML_TEXT_H_

#include <string>

#include "absl/strings/string_view.h"

namespace qlora::engine {

// Whatever `text` holds, for use between tags and in a quoted attribute: markup is escaped; what is
// not UTF-8, control characters and the marks that reverse a text's direction become U+FFFD.
std::string EscapeHtml(absl::string_view text);

// As much of the text as fits in `width`, in ems and by a generous guess at the letters' widths;
// "…" stands for the rest. Not escaped.
std::string FitText(absl::string_view text, double width);
// That guess.
double TextWidth(absl::string_view text);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_HTML_TEXT_H_
