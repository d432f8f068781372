// Help with misspelt names in a job.
#ifndef QLORA_PROTO_JOB_NAMES_H_
#define QLORA_PROTO_JOB_NAMES_H_

#include <string>

#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"

namespace qlora::proto {

// "did you mean ...?" for a field that `message` does not have: where the job has the name
// elsewhere
// ("learning_rate" belongs into training { }), else the nearest of message's own names, else all.
std::string FieldAdvice(const google::protobuf::Descriptor& message, absl::string_view unknown);

// The values of `type`, the nearest to `unknown` first where one is near.
std::string ValueAdvice(const google::protobuf::EnumDescriptor& type, absl::string_view unknown);

// The enum of the field called `name` anywhere in the job, or nullptr.
const google::protobuf::EnumDescriptor* FindEnumOfField(absl::string_view name);

// Number of single-character insertions, deletions and replacements between a and b, case ignored.
int EditDistance(absl::string_view a, absl::string_view b);

}  // namespace qlora::proto

#endif  // QLORA_PROTO_JOB_NAMES_H_
