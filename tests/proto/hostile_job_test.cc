// Every field of the job with values that it can't have, as a user would write them: refused with
// exit code 64, by the place in the text or the field's path.
#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"
#include "proto/job_check.h"
#include "proto/job_parse.h"
#include "tests/proto/job_walk.h"

namespace qlora::proto {
namespace {

using google::protobuf::FieldDescriptor;
using testing::HasSubstr;

std::string ErrorOf(const std::string& text, const std::vector<std::string>& sets = {}) {
  const auto job = LoadJob(text, "job.textproto", sets, Command::kPlan);
  EXPECT_FALSE(job.ok()) << text;
  EXPECT_EQ(ExitCodeOf(job.status()), kExitBadJob) << text;
  return std::string(job.status().message());
}

bool IsEnum(const JobField& f) { return f.field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM; }
// --set does not reach into lists of messages.
bool CanBeSet(const JobField& f) {
  return !absl::StrContains(f.item.substr(0, f.item.rfind('.') + 1), "[0]");
}

// A word of text format that the field takes.
std::string GoodValue(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return "\"x\"";
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true";
    case FieldDescriptor::CPPTYPE_ENUM:
      return field.enum_type()->value(0)->name();
    default:
      return "1";
  }
}

TEST(HostileJob, EnumsWithoutSuchAName) {
  int enums = 0;
  for (const JobField& f : JobFields()) {
    if (!IsEnum(f)) continue;
    ++enums;
    const std::string unknown = absl::StrCat("unknown value BOGUS for ", f.field->name(), "; ");
    EXPECT_THAT(ErrorOf(f.Text("BOGUS")), HasSubstr(absl::StrCat("job.textproto:1:")));
    EXPECT_THAT(ErrorOf(f.Text("BOGUS")), HasSubstr(unknown));
    // The names that there are stand in the message.
    EXPECT_THAT(ErrorOf(f.Text("BOGUS")), HasSubstr(GoodValue(*f.field)));
    EXPECT_THAT(ErrorOf(f.Text("\"BOGUS\"")), HasSubstr("job.textproto:1:"));
    if (!CanBeSet(f)) continue;
    EXPECT_THAT(ErrorOf("", {f.path + "=BOGUS"}), HasSubstr(unknown));
  }
  EXPECT_GE(enums, 10);
}

TEST(HostileJob, EnumsWithoutSuchANumber) {
  for (const JobField& f : JobFields()) {
    if (!IsEnum(f)) continue;
    for (const char* number : {"12345", "-1", "2147483647", "-2147483648"}) {
      const std::string found = absl::StrCat("\n  ", f.item, ": found ", number);
      EXPECT_THAT(ErrorOf(f.Text(number)), HasSubstr(found));
      if (!CanBeSet(f)) continue;
      EXPECT_THAT(ErrorOf("", {absl::StrCat(f.path, "=", number)}), HasSubstr(found));
    }
    EXPECT_THAT(ErrorOf(f.Text("2147483648")), HasSubstr("job.textproto:1:"));
  }
}

TEST(HostileJob, ValuesOfAnotherKind) {
  for (const JobField& f : JobFields()) {
    const bool is_text = f.field->cpp_type() == FieldDescriptor::CPPTYPE_STRING;
    for (const char* value :
         {"\"x\"", "maybe", "{ x: 1 }", "[ { } ]", "1 2", "", "0x", "1e", "--1"}) {
      if (is_text && value[0] == '"') continue;
      EXPECT_THAT(ErrorOf(f.Text(value)), HasSubstr("job.textproto:1:")) << f.path << ": " << value;
    }
  }
}

TEST(HostileJob, SingleFieldsGivenTwice) {
  for (const JobField& f : JobFields()) {
    if (f.field->is_repeated()) continue;
    const std::string good = GoodValue(*f.field);
    EXPECT_THAT(ErrorOf(f.Text(absl::StrCat(good, " ", f.field->name(), ": ", good))),
                HasSubstr("is specified multiple times"))
        << f.path;
  }
}

// Nothing hides anything else: by name, those of the job itself, a line each; by number, all.
TEST(HostileJob, AllAtOnce) {
  std::string names;
  std::vector<std::string> sets;
  for (const JobField& f : JobFields()) {
    if (!IsEnum(f) || !CanBeSet(f)) continue;
    if (f.before.empty()) absl::StrAppend(&names, f.Text("BOGUS"), "\n");
    sets.push_back(f.path + "=777");
  }
  const std::string by_name = ErrorOf(names), by_number = ErrorOf("", sets);
  for (const JobField& f : JobFields()) {
    if (!IsEnum(f) || !CanBeSet(f)) continue;
    EXPECT_THAT(by_number, HasSubstr(absl::StrCat("\n  ", f.item, ": found 777")));
    if (!f.before.empty()) continue;
    EXPECT_THAT(by_name,
                HasSubstr(absl::StrCat("unknown value BOGUS for ", f.field->name(), "; ")));
  }
}

}  // namespace
}  // namespace qlora::proto
