#include "proto/job_rules.h"

#include <algorithm>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/job_defaults.h"
#include "proto/memory_size.h"
#include "proto/sweep_jobs.h"

namespace qlora::proto {
namespace {

std::string Quote(const std::string& text) { return absl::StrCat("\"", text, "\""); }

bool Given(const google::protobuf::Message& message) {
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  return !fields.empty();
}

// "a/b/", "./a//b" and "a/b" are one folder. Symbolic links are for those who open files to see.
std::string Normalized(const std::string& path) {
  std::string result = path.substr(0, 1) == "/" ? "/" : "";
  size_t begin = 0;
  while (begin <= path.size()) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    if (!part.empty() && part != ".") absl::StrAppend(&result, part, "/");
    begin = end + 1;
  }
  return result;
}

// What is out of range is reported as such.
void CheckBlockSize(absl::string_view path, int block, JobProblems& problems) {
  if (block >= 32 && block <= 4096 && (block & (block - 1)) != 0) {
    problems.Add(path, absl::StrCat(block), "32, 64, 128, 256, 512, 1024, 2048 or 4096", "");
  }
}

void CheckModelAndMode(const Job& job, JobProblems& problems) {
  const std::string mode = Mode::Value_Name(job.mode());
  if (job.has_model() && job.has_model_init()) {
    problems.Add("model_init", "a new model beside model", "one of the two",
                 "remove model to start from random weights, or model_init to start from a model");
  }
  if (job.has_model_init() && job.mode() != Mode::FULL) {
    problems.Add("model_init", absl::StrCat("a new model in mode ", mode), "mode FULL",
                 "random weights can't be left frozen: set mode: FULL, or give model");
  }
  if (job.mode() != Mode::QLORA && Given(job.quantization())) {
    problems.Add("quantization", absl::StrCat("settings in mode ", mode), "mode QLORA",
                 "set mode: QLORA, or remove quantization");
  }
  if (job.mode() == Mode::FULL && job.lora().has_init_from()) {
    problems.Add("lora.init_from", "an adapter in mode FULL", "modes QLORA and LORA",
                 "remove it, or set mode: LORA");
  } else if (job.mode() == Mode::FULL && Given(job.lora())) {
    problems.Add("lora", "settings in mode FULL", "modes QLORA and LORA",
                 "set mode: LORA, or remove lora");
  }
  if (job.mode() == Mode::FULL && job.parallel().shard_base()) {
    problems.Add("parallel.shard_base", "true in mode FULL", "modes QLORA and LORA",
                 "no weight is frozen: remove it; parallel.shard_states shares out the states");
  }
  if (job.device() == DeviceKind::CUDA && job.has_cpu_isa() && job.cpu_isa() != CpuIsa::AUTO) {
    problems.Add("cpu_isa", CpuIsa::Value_Name(job.cpu_isa()), "AUTO with device CUDA",
                 "remove cpu_isa, or set device: CPU");
  }
  if (job.attention_kernel() == AttentionKernel::CUDNN) {
    if (job.device() == DeviceKind::CPU) {
      problems.Add("attention_kernel", "CUDNN with device CPU", "OWN",
                   "remove it, or set device: CUDA");
    }
    if (job.compute_dtype() == ComputeDtype::FP32) {
      problems.Add("attention_kernel", "CUDNN with compute_dtype FP32", "CUDNN with BF16",
                   "remove attention_kernel, or set compute_dtype: BF16");
    }
  }
  if (job.has_memory_limit()) {
    if (const auto bytes = ParseMemorySize(job.memory_limit()); !bytes.ok()) {
      problems.AddAt("memory_limit", bytes.status().message());
    }
  }
  if (job.training().has_paged_states_budget()) {
    const Optimizer::Value optim = job.training().optim();
    if (const auto bytes = ParseMemorySize(job.training().paged_states_budget()); !bytes.ok()) {
      problems.AddAt("training.paged_states_budget", bytes.status().message());
    } else if (optim != Optimizer::PAGED_ADAMW_32BIT && optim != Optimizer::PAGED_ADAMW_8BIT) {
      problems.Add("training.paged_states_budget",
                   absl::StrCat("a budget with optim ", Optimizer::Value_Name(optim)),
                   "one with PAGED_ADAMW_32BIT and PAGED_ADAMW_8BIT",
                   "set training.optim to a paged one, or remove the budget");
    }
  }
  CheckBlockSize("quantization.block_size", job.quantization().block_size(), problems);
  for (int i = 0; i < job.drift().block_sizes_size(); ++i) {
    CheckBlockSize(absl::StrCat("drift.block_sizes[", i, "]"), job.drift().block_sizes(i),
                   problems);
  }
}

void CheckTargets(const Lora& lora, JobProblems& problems) {
  if (!lora.target_modules().empty() && lora.has_target_modules_regex()) {
    problems.Add("lora.target_modules_regex", "a pattern beside target_modules", "one of the two",
                 "remove one");
  }
  CheckTargetNames(lora.target_modules(), "lora.target_modules", problems);
}

void CheckSchedule(const Job& job, JobProblems& problems) {
  const Training& t = job.training();
  if (t.has_warmup_ratio() && t.has_warmup_steps()) {
    problems.Add("training.warmup_steps", absl::StrCat(t.warmup_steps(), " beside warmup_ratio"),
                 "one of the two", "remove one");
  }
  const bool warmup = t.warmup_steps() > 0 || t.warmup_ratio() > 0;
  if (t.has_lr_scheduler_type() && t.lr_scheduler_type() == Scheduler::CONSTANT && warmup) {
    problems.Add("training.lr_scheduler_type", "CONSTANT with a warmup",
                 "CONSTANT_WITH_WARMUP, LINEAR or COSINE",
                 "set CONSTANT_WITH_WARMUP, or remove the warmup");
  }
  if (t.has_max_steps() && t.warmup_steps() > t.max_steps()) {
    problems.Add("training.warmup_steps", absl::StrCat(t.warmup_steps()),
                 absl::StrCat("at most max_steps, ", t.max_steps()),
                 "the learning rate would never be reached");
  }
  const Job full = WithDefaults(job);
  const Training& f = full.training();
  if (f.load_best_model_at_end()) {
    if (!HasHeldOutData(job)) {
      problems.Add("training.load_best_model_at_end", "true without held-out data",
                   "with data.eval_file or data.eval_fraction", "give one of them, or remove it");
    }
    if (f.eval_steps() <= 0 || f.save_steps() <= 0 || f.save_steps() % f.eval_steps() != 0) {
      problems.Add(
          "training.load_best_model_at_end",
          absl::StrCat("true with eval_steps ", f.eval_steps(), " and save_steps ", f.save_steps()),
          "save_steps a multiple of eval_steps, both above 0", "set both to the same number");
    }
  }
  // Rows of a micro-batch are counted in 32 bits.
  const int64_t tokens = static_cast<int64_t>(f.per_device_train_batch_size()) *
                         static_cast<int64_t>(full.data().max_length());
  if (tokens > std::numeric_limits<int32_t>::max()) {
    problems.Add("training.per_device_train_batch_size",
                 absl::StrCat(f.per_device_train_batch_size(), " rows of max_length ",
                              full.data().max_length(), ", ", tokens, " tokens"),
                 "2147483647 tokens per micro-batch", "raise gradient_accumulation_steps instead");
  }
}

void CheckData(const Job& job, JobProblems& problems) {
  const Data& d = job.data();
  const std::string format = DataFormat::Value_Name(d.format());
  if (d.has_eval_file() && d.eval_fraction() > 0) {
    problems.Add("data.eval_fraction", absl::StrCat(d.eval_fraction(), " beside eval_file"),
                 "one of the two", "remove one");
  }
  const bool has_prompts = HasPrompts(d.format());
  if (d.whole_string_tokenization() && (!has_prompts || d.format() == DataFormat::MESSAGES)) {
    problems.Add("data.whole_string_tokenization", absl::StrCat("true in format ", format),
                 "formats PROMPT_COMPLETION and ALPACA", "remove it");
  }
  const Data filled = WithDefaults(job).data();
  if (filled.prompt_field() == filled.completion_field()) {
    problems.Add("data.completion_field", Quote(filled.completion_field()),
                 "another name than prompt_field's", "the model would learn to repeat its prompt");
  }
  if (job.eval().exact_match() && !has_prompts) {
    problems.Add("eval.exact_match", absl::StrCat("true in format ", format),
                 "formats with a prompt and an answer", "remove it");
  }
}

void CheckPlan(const Job& job, JobProblems& problems) {
  for (const auto& [path, text] : {std::pair("plan.memory", job.plan().memory()),
                                   std::pair("plan.host_memory", job.plan().host_memory())}) {
    if (text.empty()) continue;
    if (const auto bytes = ParseMemorySize(text); !bytes.ok()) {
      problems.AddAt(path, bytes.status().message());
    }
  }
  if (job.plan().report() && !job.has_output_dir()) {
    problems.AddAbsent("output_dir", "plan.report: true writes there");
  }
}

void CheckMessages(const Generate& generate, JobProblems& problems) {
  if (generate.has_prompt() && !generate.messages().empty()) {
    problems.Add("generate.messages", "messages beside a prompt", "one of the two", "remove one");
  }
  for (int i = 0; i < generate.messages_size(); ++i) {
    const ChatMessage& message = generate.messages(i);
    const std::string path = absl::StrCat("generate.messages[", i, "]");
    if (message.role() != "system" && message.role() != "user" && message.role() != "assistant") {
      problems.Add(path + ".role", Quote(message.role()), "system, user or assistant", "");
    }
    if (!message.has_content()) problems.AddAbsent(path + ".content", "give what was said");
  }
  const int last = generate.messages_size() - 1;
  if (last >= 0 && generate.messages(last).role() == "assistant") {
    problems.Add(absl::StrCat("generate.messages[", last, "].role"), "\"assistant\" at the end",
                 "user or system", "the model is to say the next turn");
  }
}

}  // namespace

void CheckTargetNames(const google::protobuf::RepeatedPtrField<std::string>& names,
                      const std::string& list, JobProblems& problems) {
  std::set<std::string> seen;
  for (int i = 0; i < names.size(); ++i) {
    const std::string path = absl::StrCat(list, "[", i, "]");
    if (names[i] == "all-linear" && names.size() > 1) {
      problems.Add(path, "\"all-linear\" among other names", "\"all-linear\" alone",
                   "remove the other names: they are in it");
    }
    if (!seen.insert(names[i]).second) {
      problems.Add(path, absl::StrCat(Quote(names[i]), " a second time"), "each name once", "");
    }
  }
}

void CheckContradictions(const Job& job, JobProblems& problems) {
  CheckModelAndMode(job, problems);
  CheckTargets(job.lora(), problems);
  CheckSchedule(job, problems);
  CheckData(job, problems);
  CheckMessages(job.generate(), problems);
  CheckPlan(job, problems);
  CheckSweep(job, problems);
}

namespace {

// Starting anew removes the checkpoints of output_dir: none of them can be an input too.
void CheckNoInputIsOverwritten(const Job& job, JobProblems& problems) {
  if (!job.overwrite_output_dir()) return;
  const std::string removed = Normalized(job.output_dir()) + "checkpoint-";
  const std::pair<const char*, std::string> inputs[] = {
      {"model", job.model()},
      {"model_init.config", job.model_init().config()},
      {"model_init.tokenizer", job.model_init().tokenizer()},
      {"lora.init_from", job.lora().init_from()},
      {"data.train_file", job.data().train_file()},
      {"data.eval_file", job.data().eval_file()}};
  for (const auto& [field, path] : inputs) {
    if (Normalized(path).compare(0, removed.size(), removed) != 0) continue;
    problems.Add(field, Quote(path), "an input outside the checkpoints of output_dir",
                 "overwrite_output_dir would remove it: give another output_dir");
  }
}

// A gate whose metric is never measured would pass unseen. What the loss is compared with only
// training has.
void CheckGates(const Job& job, Command command, JobProblems& problems) {
  const bool trains = command == Command::kTrain || command == Command::kSweep;
  const std::vector<SweepJob> adapters = SweepJobs(job);
  const bool all_have_data =
      command == Command::kSweep
          ? std::all_of(adapters.begin(), adapters.end(),
                        [](const SweepJob& own) { return HasHeldOutData(own.job); })
          : HasHeldOutData(job);
  for (const auto& [is_given, field] :
       {std::pair(job.gates().has_max_eval_loss_increase(), "gates.max_eval_loss_increase"),
        std::pair(job.gates().has_min_exact_match(), "gates.min_exact_match")}) {
    if (!trains || !is_given || all_have_data) continue;
    problems.Add(field, "a gate without held-out data", "with data.eval_file or data.eval_fraction",
                 "give one of them, or remove it");
  }
  if (job.gates().has_min_exact_match() && !job.eval().exact_match()) {
    problems.Add("gates.min_exact_match", "a gate without eval.exact_match",
                 "one with eval.exact_match: true", "set it, or remove the gate");
  }
}

void CheckLogitsFile(const Job& job, JobProblems& problems) {
  if (!job.eval().has_logits_file()) return;
  if (job.data().format() != DataFormat::PRETOKENIZED && job.data().format() != DataFormat::AUTO) {
    problems.Add("eval.logits_file",
                 absl::StrCat("a file in format ", DataFormat::Value_Name(job.data().format())),
                 "format PRETOKENIZED",
                 "logits are compared id by id: give input_ids, or remove it");
  }
  const std::string path = Normalized(job.eval().logits_file());
  for (const std::string& input : {job.model(), job.eval().adapter(), job.eval().file(),
                                   job.data().train_file(), job.data().eval_file()}) {
    const std::string taken = Normalized(input);
    if (input.empty() || path.compare(0, taken.size(), taken) != 0) continue;
    problems.Add("eval.logits_file", Quote(job.eval().logits_file()), "a file outside the input",
                 absl::StrCat("it would replace a file of ", Quote(input)));
    return;
  }
}

void CheckDrift(const Job& job, JobProblems& problems) {
  const Drift& drift = job.drift();
  if (!drift.has_file() && !job.data().has_eval_file() && !job.data().has_train_file()) {
    problems.AddAbsent("drift.file", "give a JSONL file, here, as data.eval_file or train_file");
  }
  if (drift.apply_residual_init() && drift.has_adapter()) {
    problems.Add("drift.apply_residual_init", "true beside drift.adapter", "one of the two",
                 "an adapter that is trained needs no start: remove one");
  }
  if (drift.apply_residual_init() && drift.has_compare_remedies() && !drift.compare_remedies()) {
    problems.Add("drift.apply_residual_init", "true with compare_remedies: false",
                 "with compare_remedies: true", "what is applied is measured: remove one");
  }
}

// The result takes the place of what is there: that can't be an input.
void CheckMerge(const Job& job, JobProblems& problems) {
  const Merge merge = WithDefaults(job).merge();
  if (!merge.has_file() && !job.data().has_eval_file() && !job.data().has_train_file()) {
    problems.AddAbsent("merge.file", "give a JSONL file, here, as data.eval_file or train_file");
  }
  const std::string output = Normalized(merge.output());
  for (const auto& [field, path] :
       {std::pair{"model", job.model()}, std::pair{"merge.adapter", merge.adapter()},
        std::pair{"merge.file", merge.file()}, std::pair{"data.eval_file", job.data().eval_file()},
        std::pair{"data.train_file", job.data().train_file()},
        std::pair{"output_dir", job.output_dir()}}) {
    if (path.empty() || Normalized(path).compare(0, output.size(), output) != 0) continue;
    problems.Add("merge.output", Quote(merge.output()), "a folder without any input in it",
                 absl::StrCat("the result would take the place of ", field, ", ", Quote(path)));
  }
  if (job.mode() == Mode::LORA && merge.into() != MergeInto::BASE) {
    problems.Add("merge.into", MergeInto::Value_Name(merge.into()), "BASE in mode LORA",
                 "the adapter was trained on a 16-bit base");
  }
  if (job.mode() == Mode::FULL) {
    problems.Add("mode", "FULL", "QLORA and LORA", "mode FULL has no adapter to merge");
  }
}

}  // namespace

void CheckRequired(const Job& job, Command command, JobProblems& problems) {
  const bool trains =
      command == Command::kTrain || command == Command::kPlan || command == Command::kSweep;
  if (!job.has_model() && !(trains && job.has_model_init())) {
    problems.AddAbsent("model", job.mode() == Mode::FULL && trains
                                    ? "give a model folder, a hub id, or model_init"
                                    : "give a model folder or a hub id");
  }
  if (job.has_model_init()) {
    if (!job.model_init().has_config()) {
      problems.AddAbsent("model_init.config", "give the config.json of the new model");
    }
    if (!job.model_init().has_tokenizer()) {
      problems.AddAbsent("model_init.tokenizer", "give a folder with tokenizer.json");
    }
  }
  const auto refuse_model_as_output = [&] {
    if (job.has_output_dir() && job.has_model() &&
        Normalized(job.output_dir()) == Normalized(job.model())) {
      problems.Add("output_dir", Quote(job.output_dir()), "another folder than model",
                   "the model would be written over");
    }
  };
  const auto refuse_adapter_in_full = [&](bool has_adapter, absl::string_view path) {
    if (has_adapter && job.mode() == Mode::FULL) {
      problems.Add(path, "an adapter in mode FULL", "modes QLORA and LORA",
                   "set mode: LORA for a 16-bit base, QLORA for a 4-bit one");
    }
  };
  switch (command) {
    case Command::kTrain:
      if (!job.has_output_dir()) problems.AddAbsent("output_dir", "give a folder for the results");
      refuse_model_as_output();
      CheckGates(job, command, problems);
      CheckNoInputIsOverwritten(job, problems);
      [[fallthrough]];
    case Command::kInspect:
      if (!job.data().has_train_file()) problems.AddAbsent("data.train_file", "give a JSONL file");
      break;
    case Command::kPlan:
      refuse_model_as_output();
      if (!job.has_sweep()) break;
      CheckSweepIsAsked(job, problems);
      if (job.plan().world_size() > 1) {
        problems.Add("plan.world_size", absl::StrCat(job.plan().world_size(), " beside a sweep"),
                     "1", "a sweep runs in one process: remove one");
      }
      break;
    case Command::kSweep:
      if (!job.has_output_dir()) problems.AddAbsent("output_dir", "give a folder for the results");
      refuse_model_as_output();
      CheckGates(job, command, problems);
      for (const SweepJob& own : SweepJobs(job)) CheckNoInputIsOverwritten(own.job, problems);
      CheckSweepCommand(job, problems);
      break;
    case Command::kEval:
      if (!job.eval().has_file() && !HasHeldOutData(job)) {
        problems.AddAbsent("eval.file",
                           "give a JSONL file, here or as data.eval_file, or data.eval_fraction");
      }
      if (!job.eval().has_file() && !job.data().has_eval_file() && !job.data().has_train_file()) {
        problems.AddAbsent("data.train_file", "give the JSONL file that a part is held out of");
      }
      CheckLogitsFile(job, problems);
      CheckGates(job, command, problems);
      refuse_adapter_in_full(job.eval().has_adapter(), "eval.adapter");
      break;
    case Command::kGenerate:
      if (!job.generate().has_prompt() && job.generate().messages().empty()) {
        problems.AddAbsent("generate.prompt", "give a prompt, or messages");
      }
      refuse_adapter_in_full(job.generate().has_adapter(), "generate.adapter");
      break;
    case Command::kMerge:
      if (!job.has_output_dir()) problems.AddAbsent("output_dir", "give a folder for the results");
      CheckMerge(job, problems);
      break;
    case Command::kDrift:
      CheckDrift(job, problems);
      [[fallthrough]];
    case Command::kQuantize:
      if (!job.has_output_dir()) problems.AddAbsent("output_dir", "give a folder for the results");
      refuse_model_as_output();
      if (job.mode() != Mode::QLORA) {
        problems.Add("mode", Mode::Value_Name(job.mode()), "QLORA",
                     "other modes have no 4-bit weights: remove mode");
      }
      break;
  }
}

}  // namespace qlora::proto
