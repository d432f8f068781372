#include "engine/setup/setup.h"

#include <algorithm>
#include <initializer_list>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/job_identity.h"
#include "engine/input_error.h"
#include "engine/io/hub_cache.h"
#include "engine/io/sha256.h"
#include "engine/model/families.h"
#include "engine/model/kept_modules.h"
#include "engine/model/load_weights.h"
#include "engine/model/prequantized.h"
#include "engine/plan/card_table.h"
#include "engine/plan/plan_limits.h"
#include "engine/setup/join_ranks.h"
#include "engine/setup/open_device.h"
#include "engine/setup/read_job_data.h"
#include "engine/setup/take_data.h"
#include "engine/text/chat_format.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using proto::Command;

constexpr int64_t kMaxConfigBytes = 16 << 20;
// Sequences generated at a time in evaluation: more share each pass over the weights, at the price
// of cache memory.
constexpr int64_t kEvalSequences = 16;
// Tokens of a prompt fed at a time.
constexpr int64_t kPrefillTokens = 512;

class Preparation {
 public:
  Preparation(const proto::Job& job, Command command, Env* env, Ranks* ranks, Setup* setup)
      : command_(command), s_(*setup) {
    s_.job = job;
    s_.ranks = ranks;
    s_.env = env;
    if (command == Command::kPlan) s_.planned_world = job.plan().world_size();
    trains_ = IsAboutTraining(command);
  }

  absl::Status Run() {
    return Do({&Preparation::OpenModel, &Preparation::OpenTokenizer, &Preparation::ChooseTargets,
               &Preparation::CheckJobAgainstModel, &Preparation::OpenDevice,
               &Preparation::JoinOthers, &Preparation::ReadData, &Preparation::ReadPrompts,
               &Preparation::MeasureDevice, &Preparation::ChooseOptions, &Preparation::LimitMemory,
               &Preparation::ChooseAttention, &Preparation::ChooseKernels, &Preparation::HashModel,
               &Preparation::Identify});
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
    s_.rates = first.rates;
    s_.rates_source = first.rates_source;
    s_.base_hash = first.base_hash;
    s_.job.set_num_threads(first.job.num_threads());
    return Do({&Preparation::ChooseTargets, &Preparation::CheckJobAgainstModel,
               &Preparation::ReadData, &Preparation::ChooseOptions, &Preparation::Identify});
  }

 private:
  using Part = absl::Status (Preparation::*)();
  absl::Status Do(std::initializer_list<Part> parts) {
    for (const Part part : parts) {
      if (absl::Status status = (this->*part)(); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  bool HasModelInit() const { return s_.job.has_model_init(); }
  bool IsPlan() const { return command_ == Command::kPlan; }

  absl::Status OpenModel() {
    if (HasModelInit()) {
      s_.config_file = s_.job.model_init().config();
      s_.tokenizer_folder = s_.job.model_init().tokenizer();
      absl::StatusOr<std::string> text = s_.env->ReadFile(s_.config_file, kMaxConfigBytes);
      if (!text.ok()) return AsInputError(text.status());
      absl::StatusOr<ModelSpec> spec = ParseModelConfig(*text, s_.config_file);
      if (!spec.ok()) return AsInputError(spec.status());
      s_.spec = *std::move(spec);
      return absl::OkStatus();
    }
    absl::StatusOr<std::string> folder = ResolveModel(s_.env, s_.job.model(), HubCacheFolder());
    if (!folder.ok()) return AsInputError(folder.status());
    s_.model_folder = s_.tokenizer_folder = *folder;
    s_.config_file = JoinPath(*folder, "config.json");
    absl::StatusOr<ModelSpec> spec = ReadModelConfig(s_.env, *folder);
    if (!spec.ok()) return AsInputError(spec.status());
    s_.spec = *std::move(spec);
    absl::StatusOr<ShardedModel> model = ShardedModel::Open(s_.env, *folder);
    if (IsPlan() && absl::IsNotFound(model.status())) {
      s_.warnings.push_back(absl::StrCat(*folder, " has no weights: planned by ", s_.config_file,
                                         " alone, weights in 16 bits"));
      return absl::OkStatus();
    }
    if (!model.ok()) return AsInputError(model.status());
    s_.model = *std::move(model);
    const auto& kept = s_.job.quantization().keep_in_16_bits();
    const std::vector<std::string> names(kept.begin(), kept.end());
    if (absl::Status s = KeepIn16Bits(names, &s_.spec); !s.ok()) return s;
    if (absl::Status s = CheckUnquantized(); !s.ok()) return s;
    return AsInputError(CheckCheckpoint(
        *s_.model, s_.job.mode(), QuantSpecOf(s_.job.quantization()), &s_.spec, &s_.warnings));
  }

  // What measures or makes 4-bit weights starts from 16-bit ones.
  absl::Status CheckUnquantized() {
    if (command_ != Command::kQuantize && command_ != Command::kDrift) return absl::OkStatus();
    const std::vector<WeightRow> rows = WeightRows(s_.spec);
    const auto found = std::find_if(rows.begin(), rows.end(), [&](const WeightRow& row) {
      return IsPrequantized(*s_.model, row);
    });
    if (found == rows.end()) return absl::OkStatus();
    return proto::BadDataError(
        absl::StrCat(s_.model_folder, ": tensor ", found->name,
                     " is stored in 4 bits already; needed are 16- or 32-bit weights, ",
                     command_ == Command::kDrift ? "which are the baseline" : "to quantize",
                     ": give the checkpoint that this one was quantized from"));
  }

  absl::Status OpenTokenizer() {
    absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(s_.tokenizer_folder);
    if (!tokenizer.ok()) {
      // Pretokenized input needs none.
      const proto::DataFormat::Value format = s_.job.data().format();
      const bool needed =
          command_ == Command::kGenerate || s_.job.eval().exact_match() ||
          (format != proto::DataFormat::PRETOKENIZED && format != proto::DataFormat::AUTO);
      const bool has_data = s_.job.data().has_train_file() || s_.job.data().has_eval_file();
      if (IsPlan() && !has_data && absl::IsNotFound(tokenizer.status())) return absl::OkStatus();
      if (needed || !absl::IsNotFound(tokenizer.status())) return AsInputError(tokenizer.status());
      return absl::OkStatus();
    }
    s_.tokenizer = *std::move(tokenizer);
    if (s_.tokenizer->vocab_size() > s_.spec.vocab) {
      return proto::BadDataError(absl::StrCat(
          JoinPath(s_.tokenizer_folder, "tokenizer.json"), " has token ids up to ",
          s_.tokenizer->vocab_size() - 1, "; the model of ", s_.config_file, " has embeddings for ",
          s_.spec.vocab, " (vocab_size). Use the tokenizer that belongs to the model"));
    }
    return absl::OkStatus();
  }

  // The adapter that commands eval and generate read: its config says which modules the program
  // adapts.
  const std::string& AdapterFolder() const {
    static const std::string none;
    if (command_ == Command::kEval) return s_.job.eval().adapter();
    if (command_ == Command::kGenerate) return s_.job.generate().adapter();
    if (command_ == Command::kDrift) return s_.job.drift().adapter();
    if (command_ == Command::kMerge) return s_.job.merge().adapter();
    return none;
  }

  const char* AdapterField() const {
    return command_ == Command::kEval    ? "eval.adapter"
           : command_ == Command::kDrift ? "drift.adapter"
           : command_ == Command::kMerge ? "merge.adapter"
                                         : "generate.adapter";
  }

  absl::Status ChooseTargets() {
    const std::vector<WeightRow> rows = WeightRows(s_.spec);
    proto::Lora lora = s_.job.lora();
    if (!trains_) {
      if (AdapterFolder().empty()) return absl::OkStatus();
      if (absl::Status status = AdaptTo(AdapterFolder(), &lora); !status.ok()) return status;
    } else if (s_.job.mode() == proto::Mode::FULL) {
      return absl::OkStatus();
    }
    absl::StatusOr<LoraTargets> targets = ResolveLoraTargets(lora, rows);
    if (!targets.ok() && !trains_) return AdapterOfAnotherModel(lora, rows);
    if (!targets.ok()) {
      problems_.emplace_back(targets.status().message());
      return absl::OkStatus();
    }
    s_.targets = *std::move(targets);
    s_.lora_size = MeasureLora(s_.targets, rows);
    return CheckInitFrom(lora);
  }

  absl::Status AdapterOfAnotherModel(const proto::Lora& lora, const std::vector<WeightRow>& rows) {
    constexpr size_t kMaxShown = 5;
    std::vector<std::string> strangers;
    for (const std::string& module : lora.target_modules()) {
      const bool known = std::any_of(rows.begin(), rows.end(), [&](const WeightRow& row) {
        return row.name == module + ".weight";
      });
      if (!known) strangers.push_back(module);
    }
    const size_t count = strangers.size();
    strangers.resize(std::min(count, kMaxShown));
    return proto::BadDataError(absl::StrCat(
        AdapterField(), ": ", AdapterFolder(), " adapts ", count, " modules that ", s_.config_file,
        " does not describe: ", absl::StrJoin(strangers, ", "), count > kMaxShown ? ", ..." : "",
        ". Give the model that the adapter was trained on (base_model_name_or_path in its "
        "adapter_config.json)"));
  }

  // The adapter to go on from must be exactly the one that this job describes: of another rank or
  // scale its weights would mean something else.
  absl::Status CheckInitFrom(const proto::Lora& lora) {
    if (!trains_ || lora.init_from().empty()) return absl::OkStatus();
    std::vector<ExpectedModule> expected;
    for (const AdaptedModule& m : s_.targets.modules) {
      expected.push_back({.path = m.module, .in = m.in, .out = m.out});
    }
    const absl::StatusOr<LoadedAdapter> adapter = ReadAdapter(s_.env, lora.init_from(), expected);
    if (!adapter.ok()) {
      return proto::Annotate(AsInputError(adapter.status()), "lora.init_from");
    }
    const AdapterConfig& config = adapter->adapter.config;
    const auto must_equal = [&](const char* field, const std::string& job,
                                const std::string& there) {
      if (job == there) return;
      problems_.push_back(absl::StrCat("lora.", field, ": found ", job, "; the adapter of ",
                                       "lora.init_from (", lora.init_from(), ") has ", there,
                                       ": set lora.", field, ": ", there));
    };
    must_equal("r", absl::StrCat(lora.r()), absl::StrCat(config.r));
    must_equal("lora_alpha", absl::StrCat(lora.lora_alpha()), absl::StrCat(config.lora_alpha));
    must_equal("use_rslora", lora.use_rslora() ? "true" : "false",
               config.use_rslora ? "true" : "false");
    return absl::OkStatus();
  }

  // What only the model can tell to be wrong with the job, all in one go.
  absl::Status CheckJobAgainstModel() {
    const proto::Data& data = s_.job.data();
    if (command_ != Command::kGenerate && data.max_length() > s_.spec.max_positions) {
      problems_.push_back(absl::StrCat("data.max_length: found ", data.max_length(),
                                       "; allowed: at most ", s_.spec.max_positions,
                                       ", max_position_embeddings of ", s_.config_file));
    }
    if (data.format() == proto::DataFormat::MESSAGES && s_.tokenizer != nullptr) {
      const absl::Status format = ChatFormatOf(data, *s_.tokenizer).status();
      if (!format.ok()) problems_.emplace_back(format.message());
    }
    if (problems_.empty()) return absl::OkStatus();
    return proto::BadJobError(absl::StrJoin(problems_, "\n"));
  }

  // The lora message that a saved adapter answers to: exactly the modules that it holds.
  absl::Status AdaptTo(const std::string& folder, proto::Lora* lora) {
    absl::StatusOr<LoadedAdapter> adapter = ReadAdapter(s_.env, folder, {});
    if (!adapter.ok()) {
      return proto::Annotate(AsInputError(adapter.status()), AdapterField());
    }
    lora->Clear();
    lora->set_r(int32_t(adapter->adapter.config.r));
    lora->set_lora_alpha(adapter->adapter.config.lora_alpha);
    lora->set_use_rslora(adapter->adapter.config.use_rslora);
    lora->set_allow_uneven_targets(true);
    for (const AdapterModule& module : adapter->adapter.modules) {
      lora->add_target_modules(module.path);
    }
    return absl::OkStatus();
  }

  // Ranks of one machine share its cores and its memory.
  int RanksHere() const { return s_.ranks == nullptr ? 1 : s_.ranks->control().local_size(); }

  absl::Status OpenDevice() {
    if (s_.job.num_threads() == 0 && RanksHere() > 1) {
      s_.job.set_num_threads(std::max(1, int(std::thread::hardware_concurrency()) / RanksHere()));
    }
    s_.rates_source = "measured here";
    if (IsPlan() && NamesDevice(s_.job.plan())) {
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
    absl::StatusOr<MachineRates> rates = MeasureRates(*s_.device, ComputeType());
    if (!rates.ok()) {
      return proto::DoesNotFitError(
          absl::StrCat("measuring the speed of this machine: ", rates.status().message()));
    }
    s_.rates = *rates;
    return absl::OkStatus();
  }

  DType ComputeType() const {
    return s_.job.compute_dtype() == proto::ComputeDtype::FP32 ? DType::kF32 : DType::kBf16;
  }

  absl::Status ReadData() { return ReadJobData(command_, first_, &s_); }

  absl::Status ReadPrompts() {
    if (command_ != Command::kGenerate) return absl::OkStatus();
    absl::StatusOr<std::vector<int32_t>> ids = EncodePrompt(s_);
    if (!ids.ok()) return ids.status();
    s_.prompts.push_back(*std::move(ids));
    return absl::OkStatus();
  }

  absl::Status ChooseOptions() {
    const proto::Training& training = s_.job.training();
    StorageOptions& storage = s_.record.storage;
    storage.mode = s_.job.mode();
    storage.compute = ComputeType();
    storage.quant = QuantSpecOf(s_.job.quantization());
    if (!s_.targets.modules.empty()) storage.lora = {s_.targets};
    storage.training = trains_;
    storage.eight_bit_states = training.optim() == proto::Optimizer::PAGED_ADAMW_8BIT ||
                               training.optim() == proto::Optimizer::ADAMW_8BIT;
    storage.weight_decay = float(training.weight_decay());
    if (training.gradient_sum() == proto::GradientSum::TREE) {
      storage.pending_gradients = PendingGradients(training.gradient_accumulation_steps());
    }
    storage.ranks = s_.world();
    storage.rank = s_.ranks == nullptr ? 0 : s_.ranks->rank();
    storage.shard_states = storage.ranks > 1 && s_.job.parallel().shard_states();
    storage.shard_base = storage.ranks > 1 && s_.job.parallel().shard_base();
    s_.record.adam = {.beta1 = training.adam_beta1(),
                      .beta2 = training.adam_beta2(),
                      .epsilon = float(training.adam_epsilon()),
                      .max_grad_norm = float(training.max_grad_norm())};
    if (s_.train_batches) {
      s_.record.train = s_.train_batches->capacity();
    } else if (trains_) {
      // A plan without data: full rows.
      const int64_t rows = training.per_device_train_batch_size();
      const int64_t tokens = rows * s_.job.data().max_length();
      s_.record.train = {tokens, rows, tokens};
    }
    const bool logits = command_ == Command::kEval && !s_.job.eval().logits_file().empty();
    if (logits && s_.eval_data.report.format != proto::DataFormat::PRETOKENIZED) {
      return proto::BadJobError(absl::StrCat(
          "eval.logits_file: found a file in format ",
          proto::DataFormat::Value_Name(s_.eval_data.report.format),
          "; allowed: format PRETOKENIZED; logits are compared id by id: give input_ids"));
    }
    if (s_.eval_batches) {
      s_.record.eval = s_.eval_batches->capacity();
      s_.record.eval_logits = logits;
    }
    ChooseGeneration();
    storage.rope_positions = std::max<int64_t>(
        {s_.train_batches ? s_.train_data.report.longest
         : trains_        ? s_.job.data().max_length()
                          : 0,
         s_.eval_data.report.longest, s_.record.generate ? s_.record.generate->context : 0, 1});
    return absl::OkStatus();
  }

  // Tokens of a prompt and its answer; an answer ends where the model's positions do.
  template <class Options>
  int64_t Context(int64_t prompt, const Options& options) const {
    return std::min<int64_t>(prompt + options.max_new_tokens(), s_.spec.max_positions);
  }

  void ChooseGeneration() {
    if (command_ == Command::kGenerate) {
      const int64_t context = Context(int64_t(s_.prompts[0].size()), s_.job.generate());
      s_.record.generate = {1, context, std::min(kPrefillTokens, context)};
    } else if (s_.eval_batches && s_.job.eval().exact_match()) {
      const int64_t context = Context(s_.eval_data.report.longest, s_.job.eval());
      const int64_t count = int64_t(s_.eval_data.samples.size());
      s_.record.generate = {std::min(kEvalSequences, count), context,
                            std::min(kPrefillTokens, context)};
    }
  }

  absl::Status LimitMemory() {
    const bool writes_cache =
        command_ == Command::kQuantize || !s_.job.quantization().quantize_cache().empty();
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

  absl::Status JoinOthers() { return JoinRanks(&s_); }
  absl::Status HashModel() { return TakeBaseHash(&s_); }

  absl::Status Identify() {
    if (absl::Status s = CheckResidualNote(); !s.ok()) return s;
    s_.job_text = DecisiveJobText(s_.job, s_.device->info().name, s_.world());
    s_.job_hash =
        Sha256Hex(absl::StrCat(s_.job_text, "\n", s_.base_hash, "\n", s_.train_data.report.sha256));
    return absl::OkStatus();
  }

  // An adapter that started from a base's residual belongs to that base.
  absl::Status CheckResidualNote() {
    const bool starts = trains_ && s_.job.mode() != proto::Mode::FULL;
    const std::string& folder = starts ? s_.job.lora().init_from() : AdapterFolder();
    if (folder.empty()) return absl::OkStatus();
    absl::StatusOr<std::optional<ResidualNote>> note = ReadResidualNote(s_.env, folder);
    if (!note.ok()) return AsInputError(note.status());
    s_.residual_note = *std::move(note);
    if (!s_.residual_note) return absl::OkStatus();
    const std::string here = s_.job.mode() == proto::Mode::QLORA
                                 ? BaseFields(s_.record.storage.quant, s_.spec.kept_in_16_bits)
                                 : absl::StrCat("mode ", proto::Mode::Value_Name(s_.job.mode()));
    if (s_.residual_note->quantization != here) {
      return proto::BadJobError(
          absl::StrCat(starts ? "lora.init_from" : AdapterField(), ": the adapter of ", folder,
                       " started from the residual of ", s_.residual_note->quantization,
                       "; the job has ", here, ": give it the same base, or another adapter"));
    }
    s_.warnings.push_back(ResidualWarning(folder));
    if (s_.residual_note->base_sha256 != s_.base_hash) {
      s_.warnings.push_back(absl::StrCat(
          folder, ": it was made for a base with the hash ", s_.residual_note->base_sha256,
          "; this one has ", s_.base_hash,
          ". That is well if this is the 4-bit copy of that one, and wrong otherwise"));
    }
    return absl::OkStatus();
  }

  const Command command_;
  Setup& s_;
  bool trains_ = false;
  const Setup* first_ = nullptr;       // whose base this one shares
  std::vector<std::string> problems_;  // of the job, seen once the model is open
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
  Preparation preparation(job, Command::kSweep, first.env, nullptr, setup.get());
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
