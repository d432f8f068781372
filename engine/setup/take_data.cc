#include "engine/setup/take_data.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/data/share_dataset.h"
#include "engine/input_error.h"
#include "engine/setup/join_ranks.h"
#include "engine/text/chat_format.h"

namespace qlora::engine {
namespace {

absl::Status ReadData(const Setup& setup, absl::string_view field, const std::string& path,
                      int64_t max_samples, Dataset* to) {
  if (setup.env->IsFolder(path)) {
    return proto::BadDataError(
        absl::StrCat(field, ": ", path, " is a folder, but a regular file is needed"));
  }
  const int threads = setup.job.num_threads() > 0
                          ? setup.job.num_threads()
                          : std::max(1, int(std::thread::hardware_concurrency()));
  absl::StatusOr<Dataset> data =
      LoadDataset(setup.env, path, setup.job.data(), setup.tokenizer.get(), threads, max_samples,
                  TellProgress(setup.ranks));
  if (!data.ok()) {
    if (absl::IsNotFound(data.status())) {
      return proto::Annotate(AsInputError(data.status()), field);
    }
    return AsInputError(data.status());
  }
  for (const Sample& sample : data->samples) {
    const auto out = std::find_if(sample.ids.begin(), sample.ids.end(),
                                  [&](int32_t id) { return id < 0 || id >= setup.spec.vocab; });
    if (out != sample.ids.end()) {
      return proto::BadDataError(absl::StrCat(path, ":", sample.line, ": token id ", *out,
                                              " is outside the model's vocabulary; allowed: 0 to ",
                                              setup.spec.vocab - 1));
    }
  }
  *to = *std::move(data);
  return absl::OkStatus();
}

}  // namespace

absl::Status TakeData(const Setup& setup, absl::string_view field, const std::string& path,
                      int64_t max_samples, Dataset* to) {
  const SharedReading reading = setup.reading();
  if (reading.reads()) {
    if (absl::Status s = ReadData(setup, field, path, max_samples, to); !s.ok()) return s;
  }
  if (!reading.is_shared()) return absl::OkStatus();
  return ShareDataset(reading.exchange, reading.ranks, to);
}

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const Setup& setup) {
  const proto::Generate& generate = setup.job.generate();
  if (generate.messages_size() == 0) {
    absl::StatusOr<std::vector<int32_t>> ids =
        setup.tokenizer->Encode(generate.prompt(), SpecialTokens::kPlain, true);
    if (!ids.ok()) return AsInputError(ids.status());
    return ids;
  }
  std::vector<ChatMessage> messages;
  for (const proto::ChatMessage& m : generate.messages()) {
    messages.push_back({m.role(), m.content()});
  }
  absl::StatusOr<const ChatFormat*> format = ChatFormatOf(setup.job.data(), *setup.tokenizer);
  if (!format.ok()) return proto::BadJobError(format.status().message());
  absl::StatusOr<ChatTokens> chat =
      EncodeChat(**format, *setup.tokenizer, messages, ChatEnding::kGenerationPrompt);
  if (!chat.ok()) return proto::BadJobError(chat.status().message());
  return std::move(chat->ids);
}

}  // namespace qlora::engine
