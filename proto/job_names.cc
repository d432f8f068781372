#include "proto/job_names.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/job.pb.h"

namespace qlora::proto {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;

// Names longer than any of ours get no advice, so hostile input costs nothing.
constexpr size_t kLongestName = 64;

// Near means: a third of the letters wrong at most.
bool IsNear(absl::string_view unknown, absl::string_view name) {
  return EditDistance(unknown, name) <= std::max<int>(1, static_cast<int>(name.size()) / 3);
}

// The candidates near to `unknown`, nearest first, three at most.
std::vector<std::string> Nearest(absl::string_view unknown, std::vector<std::string> names) {
  if (unknown.size() > kLongestName) return {};
  names.erase(std::remove_if(names.begin(), names.end(),
                             [&](const std::string& name) { return !IsNear(unknown, name); }),
              names.end());
  std::stable_sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    return EditDistance(unknown, a) < EditDistance(unknown, b);
  });
  if (names.size() > 3) names.resize(3);
  return names;
}

std::vector<std::string> FieldNames(const Descriptor& message) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return names;
}

}  // namespace

int EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 0; i < a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i) + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const int replace =
          diagonal + (absl::ascii_tolower(a[i]) == absl::ascii_tolower(b[j]) ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replace, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row[b.size()];
}

std::string FieldAdvice(const Descriptor& message, absl::string_view unknown) {
  const Descriptor& job = *Job::descriptor();
  const std::string name(unknown);
  std::vector<std::string> homes;
  if (job.FindFieldByName(name) != nullptr) homes.push_back(name + " at the top of the job");
  for (int i = 0; i < job.field_count(); ++i) {
    const FieldDescriptor& field = *job.field(i);
    if (field.message_type() == nullptr || field.is_repeated()) continue;
    if (field.message_type()->FindFieldByName(name) != nullptr) {
      homes.push_back(absl::StrCat(field.name(), " { ", name, " }"));
    }
  }
  if (!homes.empty()) return absl::StrCat("it belongs elsewhere: ", absl::StrJoin(homes, " or "));
  const std::vector<std::string> near = Nearest(unknown, FieldNames(message));
  if (!near.empty()) return absl::StrCat("did you mean ", absl::StrJoin(near, " or "), "?");
  return absl::StrCat("allowed: ", absl::StrJoin(FieldNames(message), ", "));
}

std::string ValueAdvice(const EnumDescriptor& type, absl::string_view unknown) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) names.push_back(type.value(i)->name());
  const std::vector<std::string> near = Nearest(unknown, names);
  const std::string all = absl::StrCat("allowed: ", absl::StrJoin(names, ", "));
  if (near.empty()) return all;
  return absl::StrCat("did you mean ", near.front(), "? ", all);
}

const EnumDescriptor* FindEnumOfField(absl::string_view name) {
  const auto* file = Job::descriptor()->file();
  for (int i = 0; i < file->message_type_count(); ++i) {
    const FieldDescriptor* field = file->message_type(i)->FindFieldByName(std::string(name));
    if (field != nullptr && field->enum_type() != nullptr) return field->enum_type();
  }
  return nullptr;
}

}  // namespace qlora::proto
