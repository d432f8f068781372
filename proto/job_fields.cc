// Checks of single fields, by reflection.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/job_names.h"
#include "proto/job_ranges.h"
#include "proto/job_rules.h"

namespace qlora::proto {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// The fields whose empty string means something.
bool MayBeEmpty(absl::string_view path) {
  return path == "data.alpaca_response_tail" || path == "generate.prompt" ||
         absl::EndsWith(path, "].content");
}

// RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF.
bool IsUtf8(absl::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto byte = [&](size_t k) -> uint32_t {
      return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0;
    };
    const uint32_t lead = byte(0);
    const int length = lead < 0x80   ? 1
                       : lead < 0xC2 ? 0
                       : lead < 0xE0 ? 2
                       : lead < 0xF0 ? 3
                       : lead < 0xF5 ? 4
                                     : 0;
    if (length == 0) return false;
    for (int k = 1; k < length; ++k) {
      if ((byte(k) & 0xC0) != 0x80) return false;
    }
    if (lead == 0xE0 && byte(1) < 0xA0) return false;
    if (lead == 0xED && byte(1) > 0x9F) return false;
    if (lead == 0xF0 && byte(1) < 0x90) return false;
    if (lead == 0xF4 && byte(1) > 0x8F) return false;
    i += length;
  }
  return true;
}

void CheckString(absl::string_view path, const std::string& value, JobProblems& problems) {
  if (value.empty() && !MayBeEmpty(path)) {
    problems.Add(path, "an empty string", "a text", "leave the field out to get its default");
  } else if (absl::StrContains(value, absl::string_view("\0", 1))) {
    problems.Add(path, absl::StrCat("\"", absl::CHexEscape(value), "\" with a NUL in it"),
                 "text without NUL", "");
  } else if (!IsUtf8(value)) {
    problems.Add(path, absl::StrCat("\"", absl::CHexEscape(value), "\", which is not UTF-8"),
                 "UTF-8", "save the job as UTF-8");
  }
}

// "sweep.adapter[2].r" -> "sweep.adapter.r": items of a list share their range.
std::string WithoutIndices(absl::string_view path) {
  std::string result;
  bool inside = false;
  for (const char c : path) {
    inside = inside ? c != ']' : c == '[';
    if (!inside && c != ']') result += c;
  }
  return result;
}

void CheckInt(absl::string_view path, int64_t value, const std::string& shown,
              JobProblems& problems) {
  const IntRange* range = FindIntRange(WithoutIndices(path));
  if (range == nullptr) {
    problems.Add(path, shown, "", "the field has no range in job_ranges.cc: a bug, please report");
  } else if (!range->Contains(value)) {
    problems.Add(path, shown, range->Text(), "");
  }
}

void CheckReal(absl::string_view path, double value, JobProblems& problems) {
  const std::string shown = absl::StrFormat("%.17g", value);
  const RealRange* range = FindRealRange(WithoutIndices(path));
  if (range == nullptr) {
    problems.Add(path, shown, "", "the field has no range in job_ranges.cc: a bug, please report");
  } else if (!range->Contains(value)) {
    problems.Add(path,
                 absl::StrFormat("%g", value) == shown ? shown : absl::StrFormat("%.9g", value),
                 range->Text(), "");
  }
}

void CheckSingular(const Message& message, const FieldDescriptor& field, const std::string& path,
                   JobProblems& problems) {
  const Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32: {
      const int32_t value = reflection.GetInt32(message, &field);
      return CheckInt(path, value, absl::StrCat(value), problems);
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      const int64_t value = reflection.GetInt64(message, &field);
      return CheckInt(path, value, absl::StrCat(value), problems);
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      // Above INT64_MAX the cast is negative, which no range of an unsigned field holds.
      const uint64_t value = reflection.GetUInt64(message, &field);
      return CheckInt(path, static_cast<int64_t>(value), absl::StrCat(value), problems);
    }
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return CheckReal(path, reflection.GetDouble(message, &field), problems);
    case FieldDescriptor::CPPTYPE_STRING:
      return CheckString(path, reflection.GetString(message, &field), problems);
    case FieldDescriptor::CPPTYPE_BOOL:
      return;
    case FieldDescriptor::CPPTYPE_ENUM: {
      // proto3 keeps numbers that name no value; text format can give them.
      const int value = reflection.GetEnumValue(message, &field);
      if (field.enum_type()->FindValueByNumber(value) == nullptr) {
        problems.Add(path, absl::StrCat(value), "", ValueAdvice(*field.enum_type(), ""));
      }
      return;
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return CheckFields(reflection.GetMessage(message, &field), path + ".", problems);
    default:
      problems.Add(path, "a type without a check", "", "a bug in job_fields.cc, please report");
  }
}

}  // namespace

void CheckFields(const Message& message, const std::string& prefix, JobProblems& problems) {
  std::vector<const FieldDescriptor*> fields;
  const Reflection& reflection = *message.GetReflection();
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const std::string path = prefix + field->name();
    if (!field->is_repeated()) {
      CheckSingular(message, *field, path, problems);
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
      const std::string item = absl::StrCat(path, "[", i, "]");
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
        CheckString(item, reflection.GetRepeatedString(message, field, i), problems);
      } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        CheckFields(reflection.GetRepeatedMessage(message, field, i), item + ".", problems);
      } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_INT32) {
        const int32_t value = reflection.GetRepeatedInt32(message, field, i);
        CheckInt(item, value, absl::StrCat(value), problems);
      } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_UINT64) {
        const uint64_t value = reflection.GetRepeatedUInt64(message, field, i);
        CheckInt(item, static_cast<int64_t>(value), absl::StrCat(value), problems);
      } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
        CheckReal(item, reflection.GetRepeatedDouble(message, field, i), problems);
      } else {
        problems.Add(item, "a repeated type without a check", "", "a bug in job_fields.cc");
      }
    }
  }
}

}  // namespace qlora::proto
