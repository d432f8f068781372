#include "engine/setup/setup.h"

#include <algorithm>
#include <initializer_list>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/checkpoint/job_identity.h"
#include "engine/io/sha256.h"
#include "engine/plan/card_table.h"
#include "engine/plan/plan_limits.h"
#include "engine/setup/choose_targets.h"
#include "engine/setup/join_ranks.h"
#include "engine/setup/open_device.h"
#include "engine/setup/open_model.h"
#include "engine/setup/read_job_data.h"
#include "engine/setup/record_options.h"
#include "engine/setup/take_data.h"
#include "engine/text/chat_format.h"
#include "proto/errors.h"
#include "proto/job_defaults.h"

namespace qlora::engine {
namespace {

using proto::Command;

class Preparation {
 public:
  Preparation(const proto::Job& job, Command command, Env* env, Ranks* ranks, Setup* setup)
      : s_(*setup) {
    s_.job = job;
    s_.command = command;
    s_.ranks = ranks;
    s_.env = env;
    if (command == Command::kPlan) s_.planned_world = job.plan().world_size();
  }

  absl::Status Run() {
    return Do({&Preparation::Open, &Preparation::CheckJobAgainstModel, &Preparation::OpenDevice,
               &Preparation::Join, &Preparation::WarnOfUnused, &Preparation::ReadData,
               &Preparation::ReadPrompts, &Preparation::MeasureDevice, &Preparation::ChooseOptions,
               &Preparation::LimitMemory, &Preparation::ChooseAttention,
               &Preparation::ChooseKernels, &Preparation::HashModel, &Preparation::Identify});
  }

  // Over the base that `first` has opened.
  absl::Status RunBeside(const Setup& first) {
    first_ = &first;
    s_.model_folder = first.model_folder;
    s_.tokenizer_folder = first.tokenizer_folder;
    s_.config_file = first.config_file;
    s_.spec = first.spec;
    s_.tokenizer = first.tokenizer;
    s_.device = first.device;
    s_.device_is_planned = first.device_is_planned;
    s_.rates = first.rates;
    s_.rates_source = first.rates_source;
    s_.base_hash = first.base_hash;
    s_.job.set_num_threads(first.job.num_threads());
    return Do({&Preparation::CheckJobAgainstModel, &Preparation::ReadData,
               &Preparation::ChooseOptions, &Preparation::Identify});
  }

 private:
  using Part = absl::Status (Preparation::*)();
  absl::Status Do(std::initializer_list<Part> parts) {
    for (const Part part : parts) {
      if (absl::Status status = (this->*part)(); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status Open() {
    if (absl::Status status = OpenModel(&s_); !status.ok()) return status;
    return OpenTokenizer(&s_);
  }

  // The targets, and what only the model can tell to be wrong with the job, all in one go.
  absl::Status CheckJobAgainstModel() {
    std::vector<std::string> problems;
    if (absl::Status status = ChooseTargets(&s_, &problems); !status.ok()) return status;
    const proto::Data& data = s_.job.data();
    const bool reads_data = s_.command != Command::kGenerate && s_.command != Command::kQuantize;
    if (reads_data && data.max_length() > s_.spec.max_positions) {
      const bool is_default =
          data.max_length() == proto::WithDefaults(proto::Job()).data().max_length();
      problems.push_back(absl::StrCat("data.max_length: found ", data.max_length(),
                                      is_default ? ", the default" : "", "; allowed: at most ",
                                      s_.spec.max_positions, ", max_position_embeddings of ",
                                      s_.config_file));
    }
    if (data.format() == proto::DataFormat::MESSAGES && s_.tokenizer != nullptr) {
      const absl::Status format = ChatFormatOf(data, *s_.tokenizer).status();
      if (!format.ok()) problems.emplace_back(format.message());
    }
    if (s_.command == Command::kDrift) CheckWorstLayers(&problems);
    if (problems.empty()) return absl::OkStatus();
    return proto::BadJobError(absl::StrJoin(problems, "\n"));
  }

  // What the job asks for and this command leaves aside.
  absl::Status WarnOfUnused() {
    if (!s_.is_first()) return absl::OkStatus();
    const bool trains = s_.command == Command::kTrain || s_.command == Command::kSweep;
    const bool evaluates = s_.command == Command::kEval;
    const proto::Gates& gates = s_.job.gates();
    if ((trains || evaluates) && gates.has_max_kl()) {
      s_.warnings.emplace_back("gates.max_kl is not measured here, but by drift and merge");
    }
    if (evaluates && gates.has_max_eval_loss_increase()) {
      s_.warnings.emplace_back(
          "gates.max_eval_loss_increase is not measured here, but by train and sweep");
    }
    if (s_.command == Command::kTrain && s_.job.has_sweep()) {
      s_.warnings.emplace_back(
          "train trains one adapter, the job's own; for those of `sweep` run the command sweep");
    }
    return absl::OkStatus();
  }

  // The default is for any model: of it a smaller one measures what it can.
  void CheckWorstLayers(std::vector<std::string>* problems) const {
    const proto::Drift& drift = s_.job.drift();
    const auto check = [&](const std::string& field, int64_t count) {
      if (count <= s_.spec.layers) return;
      problems->push_back(absl::StrCat(field, ": found ", count, "; allowed: at most ",
                                       s_.spec.layers, ", the layers of the model"));
    };
    const auto& counts = drift.keep_worst_layers();
    const auto by_default = proto::WithDefaults(proto::Job()).drift().keep_worst_layers();
    const bool is_given =
        !std::equal(counts.begin(), counts.end(), by_default.begin(), by_default.end());
    for (int i = 0; is_given && i < counts.size(); ++i) {
      check(absl::StrCat("drift.keep_worst_layers[", i, "]"), counts[i]);
    }
    check("drift.apply_keep_worst_layers", drift.apply_keep_worst_layers());
  }

  // Ranks of one machine share its cores and its memory.
  int RanksHere() const { return s_.ranks == nullptr ? 1 : s_.ranks->control().local_size(); }

  absl::Status OpenDevice() {
    if (s_.job.num_threads() == 0 && RanksHere() > 1) {
      s_.job.set_num_threads(std::max(1, int(std::thread::hardware_concurrency()) / RanksHere()));
    }
    s_.rates_source = "measured here";
    if (s_.command == Command::kPlan && NamesDevice(s_.job.plan())) {
      absl::StatusOr<PlannedDevice> planned = FindPlannedDevice(s_.job.plan());
      if (!planned.ok()) return planned.status();
      s_.device = std::move(planned->device);
      s_.rates = planned->rates;
      s_.rates_source = planned->rates_source;
      s_.device_is_planned = true;
      return absl::OkStatus();
    }
    absl::StatusOr<std::unique_ptr<kernels::Device>> device =
        OpenJobDevice(s_.job, s_.ranks == nullptr ? 0 : s_.ranks->control().local_rank(),
                      RanksHere(), &s_.warnings);
    if (!device.ok()) return device.status();
    s_.device = *std::move(device);
    return absl::OkStatus();
  }

  absl::Status MeasureDevice() {
    if (s_.device_is_planned) return absl::OkStatus();
    absl::StatusOr<MachineRates> rates = MeasureRates(*s_.device, ComputeTypeOf(s_.job));
    if (!rates.ok()) {
      return proto::DoesNotFitError(
          absl::StrCat("measuring the speed of this machine: ", rates.status().message()));
    }
    s_.rates = *rates;
    return absl::OkStatus();
  }

  absl::Status Join() { return JoinRanks(&s_); }
  absl::Status ReadData() { return ReadJobData(first_, &s_); }
  absl::Status ChooseOptions() { return ChooseRecordOptions(&s_); }
  absl::Status HashModel() { return TakeBaseHash(&s_); }

  absl::Status ReadPrompts() {
    if (s_.command != Command::kGenerate) return absl::OkStatus();
    absl::StatusOr<std::vector<int32_t>> ids = EncodePrompt(s_);
    if (!ids.ok()) return ids.status();
    s_.prompts.push_back(*std::move(ids));
    return absl::OkStatus();
  }

  absl::Status LimitMemory() {
    const bool writes_cache =
        s_.command == Command::kQuantize || !s_.job.quantization().quantize_cache().empty();
    absl::StatusOr<PlanLimits> limits = LimitsOf(s_, writes_cache);
    if (!limits.ok()) return limits.status();
    s_.limits = *std::move(limits);
    return absl::OkStatus();
  }

  absl::Status ChooseAttention() {
    if (s_.job.attention_kernel() != proto::AttentionKernel::CUDNN) return absl::OkStatus();
    s_.record.storage.attention = kernels::AttentionKernel::kLibrary;
    for (const kernels::Op& op : Record(s_.spec, s_.record, *s_.device).program.Ops()) {
      const absl::Status accepted = s_.device->Accept(op);
      if (accepted.ok()) continue;
      const std::string text =
          absl::StrCat("attention_kernel: CUDNN was asked for, but ", accepted.message(),
                       " (attention_kernel: OWN needs nothing else)");
      return absl::IsNotFound(accepted) ? proto::NoDeviceError(text) : proto::BadJobError(text);
    }
    return absl::OkStatus();
  }

  absl::Status ChooseKernels() {
    // A host has one variant of everything; of a card that is not here nothing can be tried.
    if (s_.device->info().is_host || s_.device_is_planned) return absl::OkStatus();
    const RecordedRun dry = Record(s_.spec, s_.record, *s_.device);
    absl::StatusOr<KernelSelection> kernels = SelectKernels(
        dry.program.Ops(), s_.job.kernel_selection(), {}, s_.device.get(), &s_.warnings);
    if (!kernels.ok()) {
      return proto::Annotate(proto::DoesNotFitError(kernels.status().message()),
                             "trying the device's kernels on this job's shapes");
    }
    s_.record.kernels = *std::move(kernels);
    return absl::OkStatus();
  }

  absl::Status Identify() {
    if (absl::Status s = CheckResidualNote(&s_); !s.ok()) return s;
    s_.job_text = DecisiveJobText(s_.job, s_.device->info().name, s_.world());
    s_.job_hash =
        Sha256Hex(absl::StrCat(s_.job_text, "\n", s_.base_hash, "\n", s_.train_data.report.sha256));
    if (s_.command == Command::kTrain || s_.command == Command::kSweep) {
      s_.samples_hash = HashSamples(s_.train_data.samples);
      s_.held_out_hash = HashSamples(s_.eval_data.samples);
    }
    return absl::OkStatus();
  }

  Setup& s_;
  const Setup* first_ = nullptr;  // whose base this one shares
};

}  // namespace

bool IsAboutTraining(proto::Command command) {
  return command == Command::kTrain || command == Command::kPlan || command == Command::kInspect ||
         command == Command::kSweep;
}

absl::StatusOr<std::unique_ptr<Setup>> PrepareSetup(const proto::Job& job, Command command,
                                                    Env* env, Ranks* ranks) {
  auto setup = std::make_unique<Setup>();
  const absl::Status status = Preparation(job, command, env, ranks, setup.get()).Run();
  if (status.ok()) return setup;
  if (ranks != nullptr) LeaveRanks(ranks, status);
  return status;
}

absl::StatusOr<std::unique_ptr<Setup>> PrepareBeside(const Setup& first, const proto::Job& job) {
  auto setup = std::make_unique<Setup>();
  Preparation preparation(job, first.command, first.env, nullptr, setup.get());
  if (absl::Status s = preparation.RunBeside(first); !s.ok()) return s;
  return setup;
}

std::vector<int32_t> StopIds(const Setup& setup) {
  std::vector<int32_t> ids = setup.spec.eos_ids;
  if (setup.tokenizer == nullptr) return ids;
  if (const std::optional<int32_t> eos = setup.tokenizer->eos_id()) ids.push_back(*eos);
  for (const char* name : {"llama3", "chatml"}) {
    const absl::StatusOr<const ChatFormat*> format = FindChatFormat(name);
    if (!format.ok()) continue;
    if (const auto id = setup.tokenizer->TokenId((*format)->end_of_turn)) ids.push_back(*id);
  }
  return ids;
}

}  // namespace qlora::engine
