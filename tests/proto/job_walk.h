// Every field of the job, found by reflection: tests over them grow with the .proto.
#ifndef QLORA_TESTS_PROTO_JOB_WALK_H_
#define QLORA_TESTS_PROTO_JOB_WALK_H_

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/job.pb.h"

namespace qlora::proto {

// A field that is no message.
struct JobField {
  std::string path;  // "sweep.adapter.r"
  std::string item;  // the same as the first item of its lists: "sweep.adapter[0].r"
  const google::protobuf::FieldDescriptor* field;
  std::string before, after;  // of a job's text: "sweep { adapter { ", "} } "

  // A job that sets nothing else. `value` as text format has it.
  std::string Text(const std::string& value) const {
    return absl::StrCat(before, field->name(), ": ", value, " ", after);
  }
};

inline void CollectJobFields(const google::protobuf::Descriptor& message, const JobField& parent,
                             std::vector<JobField>* fields) {
  for (int i = 0; i < message.field_count(); ++i) {
    JobField f = parent;
    f.field = message.field(i);
    absl::StrAppend(&f.path, f.path.empty() ? "" : ".", f.field->name());
    absl::StrAppend(&f.item, f.item.empty() ? "" : ".", f.field->name(),
                    f.field->is_repeated() ? "[0]" : "");
    if (f.field->message_type() == nullptr) {
      fields->push_back(f);
      continue;
    }
    absl::StrAppend(&f.before, f.field->name(), " { ");
    absl::StrAppend(&f.after, "} ");
    CollectJobFields(*f.field->message_type(), f, fields);
  }
}

inline std::vector<JobField> JobFields() {
  std::vector<JobField> fields;
  CollectJobFields(*Job::descriptor(), {}, &fields);
  return fields;
}

}  // namespace qlora::proto

#endif  // QLORA_TESTS_PROTO_JOB_WALK_H_
