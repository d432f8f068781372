#include "proto/job_parse.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "proto/job_names.h"

namespace qlora::proto {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;

// Problems in hostile text are collected up to this many; the rest adds nothing.
constexpr size_t kMaxProblems = 200;

// The quoted words of a message: 'has no field named "foo"' -> {..., "foo"}.
std::vector<std::string> Quoted(absl::string_view message) {
  std::vector<std::string> words;
  const std::vector<absl::string_view> parts = absl::StrSplit(message, '"');
  for (size_t i = 1; i + 1 < parts.size(); i += 2) words.emplace_back(parts[i]);
  return words;
}

// What to do about a value or a word that protobuf could not take, by the begin of its message.
constexpr std::pair<const char*, const char*> kAdvice[] = {
    {"Expected string, got: ", "a text stands in quotes: \"...\""},
    {"Expected integer, got: ", "a whole number, not negative where none is allowed"},
    {"Expected double, got: ", "a number, as 0.5 or 1e-4"},
    {"Invalid value for boolean field", "allowed: true, false"},
    {"Expected identifier, got: {", "a job is protobuf text, not JSON: model: \"...\""},
};

// protobuf 3.21 says: Message type "T" has no field named "F". / Unknown enumeration value of "V"
// for field "F". Both get advice, as do those of kAdvice; any other message is passed on.
std::string WithAdvice(absl::string_view message) {
  const std::vector<std::string> words = Quoted(message);
  if (words.size() == 2 && absl::StrContains(message, "has no field named")) {
    const Descriptor* type = Job::descriptor()->file()->pool()->FindMessageTypeByName(words[0]);
    if (type != nullptr) {
      return absl::StrCat("unknown field \"", words[1], "\"; ", FieldAdvice(*type, words[1]));
    }
  }
  if (words.size() == 2 && absl::StrContains(message, "Unknown enumeration value")) {
    if (const auto* type = FindEnumOfField(words[1])) {
      return absl::StrCat("unknown value ", words[0], " for ", words[1], "; ",
                          ValueAdvice(*type, words[0]));
    }
  }
  std::string plain(message);
  for (char& c : plain) {
    if (absl::ascii_iscntrl(c)) c = '?';  // the terminal obeys them
  }
  if (plain == "Expected identifier, got: ") return "the text ends where a } or a value is missing";
  for (const auto& [begin, advice] : kAdvice) {
    if (absl::StartsWith(plain, begin)) return absl::StrCat(plain, "; ", advice);
  }
  return plain;
}

class Collector : public google::protobuf::io::ErrorCollector {
 public:
  // `lines` is the text being parsed, or empty where places in it don't matter.
  Collector(absl::string_view source_name, const std::vector<std::string>& lines,
            JobProblems& problems)
      : source_name_(source_name), lines_(lines), problems_(problems) {}

  // protobuf counts lines and columns from 0, and names no place as -1.
  void AddError(int line, google::protobuf::io::ColumnNumber column,
                const std::string& message) override {
    const int at = Record(line, column, message);
    if (!failed_) failed_line_ = at;
    failed_ = true;
  }
  void AddWarning(int line, google::protobuf::io::ColumnNumber column,
                  const std::string& message) override {
    Record(line, column, message);
  }

  bool failed() const { return failed_; }
  int failed_line() const { return failed_line_; }

 private:
  // Returns the line that is at fault.
  int Record(int line, int column, const std::string& message) {
    if (problems_.problems().size() >= kMaxProblems) return line;
    if (absl::StrContains(message, "Unknown enumeration value") ||
        absl::StrContains(message, "has no field named")) {
      // Told when the parser already stands behind the name, often on the next line.
      const std::vector<std::string> words = Quoted(message);
      if (words.size() == 2) StepBack(words[words[0].find('.') != std::string::npos], line, column);
    }
    const std::string place =
        line < 0 ? source_name_ : absl::StrCat(source_name_, ":", line + 1, ":", column + 1);
    problems_.AddAt(place, WithAdvice(message));
    return line;
  }

  // Moves (line, column) back to the last `word` before it.
  void StepBack(const std::string& word, int& line, int& column) const {
    for (int i = std::min<int>(line, static_cast<int>(lines_.size()) - 1); i >= 0; --i) {
      const std::string& text = lines_[i];
      const size_t end = i == line ? std::min<size_t>(column, text.size()) : text.size();
      const size_t at = text.substr(0, end).rfind(word);
      if (at == std::string::npos) continue;
      line = i;
      column = static_cast<int>(at);
      return;
    }
  }

  std::string source_name_;
  const std::vector<std::string>& lines_;
  JobProblems& problems_;
  bool failed_ = false;
  int failed_line_ = -1;
};

// Deepest nesting of brackets outside strings and comments. protobuf skips unknown fields
// recursively, so depth must be known before it reads: 10^6 brackets would end the stack.
int BracketDepth(absl::string_view text) {
  int depth = 0, deepest = 0;
  char quote = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote != 0) {
      if (c == '\\') {
        ++i;
      } else if (c == quote || c == '\n') {
        quote = 0;
      }
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '#') {
      while (i + 1 < text.size() && text[i + 1] != '\n') ++i;
    } else if (c == '{' || c == '<' || c == '[') {
      deepest = std::max(deepest, ++depth);
    } else if (c == '}' || c == '>' || c == ']') {
      --depth;
    }
  }
  return deepest;
}

// Blanks lines[bad] so that the rest can be read. A value may be missing on the line before
// ("model:"), which the parser only notices here: that line goes too. False if the line holds a
// bracket, whose loss would change the meaning of the others, or nothing that could be at fault.
bool LeaveOut(std::vector<std::string>& lines, int bad) {
  if (bad < 0 || bad >= static_cast<int>(lines.size())) return false;
  std::string& line = lines[bad];
  if (line.find_first_of("{}<>[]") != std::string::npos) return false;
  if (absl::StripAsciiWhitespace(line).empty()) return false;
  line.clear();
  int before = bad - 1;
  while (before >= 0 && absl::StripAsciiWhitespace(lines[before]).empty()) --before;
  if (before >= 0 && absl::EndsWith(absl::StripAsciiWhitespace(lines[before]), ":")) {
    lines[before].clear();
  }
  return true;
}

std::string QuoteForText(absl::string_view value) {
  return absl::StrCat("\"", absl::CEscape(value), "\"");
}

}  // namespace

Job ParseJobText(absl::string_view text_proto, absl::string_view source_name,
                 JobProblems& problems) {
  Job job;
  if (text_proto.size() > kMaxJobBytes) {
    problems.AddAt(source_name, absl::StrCat("found ", text_proto.size(), " bytes; allowed: ",
                                             kMaxJobBytes, "; is this file a job?"));
    return job;
  }
  if (const int depth = BracketDepth(text_proto); depth > kMaxJobDepth) {
    problems.AddAt(source_name,
                   absl::StrCat("found brackets ", depth, " deep; allowed: ", kMaxJobDepth));
    return job;
  }
  constexpr int kMaxRounds = 20;
  std::vector<std::string> lines = absl::StrSplit(text_proto, '\n');
  for (int round = 0; round < kMaxRounds; ++round) {
    Collector collector(source_name, lines, problems);
    TextFormat::Parser parser;
    parser.RecordErrorsTo(&collector);
    parser.AllowUnknownField(true);  // reported as a warning, and reading goes on
    job.Clear();
    parser.ParseFromString(absl::StrJoin(lines, "\n"), &job);
    if (!collector.failed() || !LeaveOut(lines, collector.failed_line())) break;
  }
  return job;
}

void ApplyOverride(absl::string_view path_and_value, Job& job, JobProblems& problems) {
  const std::string place = absl::StrCat("--set ", absl::Utf8SafeCHexEscape(path_and_value));
  const std::vector<std::string> parts = absl::StrSplit(path_and_value, absl::MaxSplits('=', 1));
  if (parts.size() != 2 || parts[0].empty()) {
    problems.AddAt(place, "found no path=value; as in --set training.learning_rate=1e-4");
    return;
  }
  Message* message = &job;
  const FieldDescriptor* field = nullptr;
  for (absl::string_view name : absl::StrSplit(parts[0], '.')) {
    if (field != nullptr) {
      if (field->message_type() == nullptr || field->is_repeated()) {
        problems.AddAt(place, absl::StrCat("found \"", name, "\" inside ", field->name(),
                                           ", which is no message"));
        return;
      }
      message = message->GetReflection()->MutableMessage(message, field);
    }
    field = message->GetDescriptor()->FindFieldByName(std::string(name));
    if (field == nullptr) {
      problems.AddAt(place, absl::StrCat("unknown field \"", name, "\"; ",
                                         FieldAdvice(*message->GetDescriptor(), name)));
      return;
    }
  }
  if (field->message_type() != nullptr) {
    problems.AddAt(place, field->is_repeated()
                              ? absl::StrCat("found a list of messages; write ", parts[0],
                                             " { ... } in the job's file")
                              : absl::StrCat("found a message; set one of its fields: ", parts[0],
                                             ".", field->message_type()->field(0)->name(), "=..."));
    return;
  }
  message->GetReflection()->ClearField(message, field);
  if (parts[1].empty()) return;
  std::vector<std::string> values = {parts[1]};
  if (field->is_repeated()) values = absl::StrSplit(parts[1], ',');
  for (const std::string& value : values) {
    const bool is_string = field->type() == FieldDescriptor::TYPE_STRING;
    JobProblems own;
    const std::vector<std::string> no_lines;
    Collector collector(place, no_lines, own);
    TextFormat::Parser parser;
    parser.RecordErrorsTo(&collector);
    if (!parser.ParseFieldValueFromString(is_string ? QuoteForText(value) : value, field,
                                          message)) {
      // Line and column of a one-word value help nobody.
      problems.AddAt(place, own.empty() ? "the value can't be read; allowed: one word or number"
                                        : own.problems()[0].text);
      return;
    }
  }
}

}  // namespace qlora::proto
