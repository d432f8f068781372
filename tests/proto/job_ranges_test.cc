// Every numeric field of the job, found by reflection, at and beyond the ends of its range.
#include "proto/job_ranges.h"

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"
#include "proto/job_check.h"
#include "tests/proto/job_walk.h"

namespace qlora::proto {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::vector<JobField> NumericFields() {
  std::vector<JobField> fields = JobFields();
  std::erase_if(fields, [](const JobField& f) {
    const auto type = f.field->cpp_type();
    return type == FieldDescriptor::CPPTYPE_STRING || type == FieldDescriptor::CPPTYPE_BOOL ||
           type == FieldDescriptor::CPPTYPE_ENUM;
  });
  return fields;
}

Message* Parent(Job& job, const std::string& path) {
  Message* message = &job;
  const std::vector<std::string> names = absl::StrSplit(path, '.');
  for (size_t i = 0; i + 1 < names.size(); ++i) {
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(names[i]);
    const auto& reflection = *message->GetReflection();
    message = field->is_repeated() ? reflection.AddMessage(message, field)
                                   : reflection.MutableMessage(message, field);
  }
  return message;
}

// Whether CheckJob names this very field.
bool Complains(const Job& job, const JobField& field) {
  const absl::Status status = CheckJob(job, Command::kPlan);
  if (status.ok()) return false;
  EXPECT_EQ(ExitCodeOf(status), kExitBadJob) << status;
  return absl::StrContains(status.message(), absl::StrCat("\n  ", field.item, ": found "));
}

bool ComplainsOfInt(const JobField& numeric, int64_t value) {
  Job job;
  job.set_model("m");
  Message* parent = Parent(job, numeric.path);
  const auto& reflection = *parent->GetReflection();
  const bool list = numeric.field->is_repeated();
  switch (numeric.field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      list ? reflection.AddInt32(parent, numeric.field, static_cast<int32_t>(value))
           : reflection.SetInt32(parent, numeric.field, static_cast<int32_t>(value));
      break;
    case FieldDescriptor::CPPTYPE_INT64:
      reflection.SetInt64(parent, numeric.field, value);
      break;
    case FieldDescriptor::CPPTYPE_UINT64:
      list ? reflection.AddUInt64(parent, numeric.field, static_cast<uint64_t>(value))
           : reflection.SetUInt64(parent, numeric.field, static_cast<uint64_t>(value));
      break;
    default:
      ADD_FAILURE() << numeric.path << " has a type that this test does not know";
  }
  return Complains(job, numeric);
}

bool ComplainsOfReal(const JobField& numeric, double value) {
  Job job;
  job.set_model("m");
  Message* parent = Parent(job, numeric.path);
  const auto& reflection = *parent->GetReflection();
  numeric.field->is_repeated() ? reflection.AddDouble(parent, numeric.field, value)
                               : reflection.SetDouble(parent, numeric.field, value);
  return Complains(job, numeric);
}

TEST(JobRangesTest, EveryNumericFieldHasARangeAndEveryRangeAField) {
  std::set<std::string> with_range, fields;
  for (const RealRange& r : RealRanges()) EXPECT_TRUE(with_range.emplace(r.path).second) << r.path;
  for (const IntRange& r : IntRanges()) EXPECT_TRUE(with_range.emplace(r.path).second) << r.path;
  for (const JobField& n : NumericFields()) {
    fields.insert(n.path);
    const bool real = n.field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE;
    EXPECT_EQ(FindRealRange(n.path) != nullptr, real) << n.path;
    EXPECT_EQ(FindIntRange(n.path) != nullptr, !real) << n.path;
  }
  EXPECT_EQ(with_range, fields);
  EXPECT_GE(fields.size(), 33u);
}

TEST(JobRangesTest, IntegersAtAndBeyondTheirEnds) {
  for (const JobField& n : NumericFields()) {
    const IntRange* range = FindIntRange(n.path);
    if (range == nullptr) continue;
    const bool narrow = n.field->cpp_type() == FieldDescriptor::CPPTYPE_INT32;
    const int64_t lowest =
        narrow ? std::numeric_limits<int32_t>::min() : std::numeric_limits<int64_t>::min();
    const int64_t highest =
        narrow ? std::numeric_limits<int32_t>::max() : std::numeric_limits<int64_t>::max();
    ASSERT_LT(range->min, range->max) << n.path;
    EXPECT_FALSE(ComplainsOfInt(n, range->min)) << n.path << " = " << range->min;
    EXPECT_FALSE(ComplainsOfInt(n, range->max)) << n.path << " = " << range->max;
    EXPECT_TRUE(ComplainsOfInt(n, range->min - 1)) << n.path;
    if (range->max < highest) {
      EXPECT_TRUE(ComplainsOfInt(n, range->max + 1)) << n.path;
    }
    EXPECT_TRUE(ComplainsOfInt(n, lowest)) << n.path;
    EXPECT_EQ(ComplainsOfInt(n, highest), range->max < highest) << n.path;
    EXPECT_EQ(ComplainsOfInt(n, 0), range->min > 0) << n.path;
  }
}

TEST(JobRangesTest, RealsAtAndBeyondTheirEnds) {
  const double inf = std::numeric_limits<double>::infinity();
  for (const JobField& n : NumericFields()) {
    const RealRange* r = FindRealRange(n.path);
    if (r == nullptr) continue;
    EXPECT_EQ(ComplainsOfReal(n, r->min), r->min_open) << n.path;
    EXPECT_EQ(ComplainsOfReal(n, r->max), r->max_open) << n.path;
    EXPECT_FALSE(ComplainsOfReal(n, std::nextafter(r->min, inf))) << n.path;
    EXPECT_FALSE(ComplainsOfReal(n, std::nextafter(r->max, -inf))) << n.path;
    EXPECT_TRUE(ComplainsOfReal(n, std::nextafter(r->min, -inf))) << n.path;
    EXPECT_TRUE(ComplainsOfReal(n, std::nextafter(r->max, inf))) << n.path;
    EXPECT_EQ(ComplainsOfReal(n, 0.0), !r->Contains(0)) << n.path;
    for (double bad : {std::nan(""), inf, -inf, std::numeric_limits<double>::max(),
                       std::numeric_limits<double>::lowest()}) {
      EXPECT_TRUE(ComplainsOfReal(n, bad)) << n.path << " = " << bad;
    }
  }
}

TEST(JobRangesTest, UnsignedBeyondTheSignBitIsShownUnsigned) {
  Job job;
  job.set_model("m");
  job.set_seed(std::numeric_limits<uint64_t>::max());
  const absl::Status status = CheckJob(job, Command::kPlan);
  EXPECT_TRUE(absl::StrContains(status.message(), "seed: found 18446744073709551615; allowed: 0.."))
      << status;
}

}  // namespace
}  // namespace qlora::proto
