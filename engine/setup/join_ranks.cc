#include "engine/setup/join_ranks.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/job_identity.h"
#include "engine/input_error.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"

namespace qlora::engine {

absl::Status JoinRanks(Setup* setup) {
  Setup& s = *setup;
  if (s.ranks == nullptr) return absl::OkStatus();
  absl::Status status =
      AgreeOnJob(s.ranks, absl::StrCat(AgreedJobText(s.job, s.device->info().name),
                                       "model: ", s.model_folder, "\nconfig: ", s.config_file,
                                       "\ntokenizer: ", s.tokenizer_folder, "\n"));
  if (!status.ok()) return status;
  if (status = s.ranks->OpenComm(s.device.get()); !status.ok()) return status;
  if (!s.device->info().is_host) {
    absl::StatusOr<kernels::Buffer> staging = s.device->Allocate(HostExchange::kStagingBytes);
    if (!staging.ok()) return proto::DoesNotFitError(staging.status().message());
    s.exchange_staging = *std::move(staging);
  }
  s.exchange = std::make_unique<HostExchange>(
      &s.ranks->comm(), s.device.get(), s.exchange_staging.data(), s.exchange_staging.bytes());
  return absl::OkStatus();
}

absl::Status TakeBaseHash(Setup* setup) {
  if (setup->reading().reads()) {
    absl::StatusOr<std::string> base =
        HashBase(setup->env, setup->config_file, setup->model, TellProgress(setup->ranks));
    if (!base.ok()) return AsInputError(base.status());
    setup->base_hash = *base;
  }
  if (setup->ranks == nullptr) return absl::OkStatus();
  absl::StatusOr<std::vector<std::string>> all =
      setup->ranks->control().AllGather("the model's hash", setup->base_hash);
  if (!all.ok()) return all.status();
  setup->base_hash = (*all)[setup->ranks->neighbours().front()];
  return absl::OkStatus();
}

std::function<void()> TellProgress(Ranks* ranks) {
  if (ranks == nullptr) return nullptr;
  return [ranks] { ranks->control().Progress(); };
}

void EnterPhase(Ranks* ranks, Phase phase, const std::string& detail) {
  if (ranks != nullptr) ranks->control().Enter(phase, detail);
}

absl::Status Meet(Ranks* ranks, const std::string& what) {
  return ranks == nullptr ? absl::OkStatus() : ranks->control().AllGather(what, "").status();
}

void LeaveRanks(Ranks* ranks, const absl::Status& status) {
  // Where they were stopped, or missed a gate, all ranks have ended well.
  const bool is_well = status.ok() || absl::IsCancelled(status) ||
                       proto::ExitCodeOf(status) == proto::kExitGateMissed;
  if (!is_well) ranks->control().Abort(status);
  ranks->CloseComm();
}

}  // namespace qlora::engine
