#include "proto/sweep_jobs.h"

#include <map>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "proto/job_defaults.h"
#include "proto/job_rules.h"

namespace qlora::proto {
namespace {

// Steps and memory grow with them; a grid of more is a slip.
constexpr int kMaxAdapters = 256;

std::string PathOf(int index) { return absl::StrCat("sweep.adapter[", index, "]"); }

std::string NameOf(const SweepAdapter& adapter, int index) {
  return adapter.has_name() ? adapter.name() : absl::StrCat("adapter-", index);
}

SweepJob WithOverrides(const Job& job, std::string name, std::string path,
                       const SweepAdapter& adapter) {
  SweepJob result{std::move(name), std::move(path), job};
  Job& own = result.job;
  own.clear_sweep();
  own.set_output_dir(absl::StrCat(job.output_dir(), job.has_output_dir() ? "/" : "", result.name));
  Lora& lora = *own.mutable_lora();
  if (adapter.has_r()) lora.set_r(adapter.r());
  if (adapter.has_lora_alpha()) lora.set_lora_alpha(adapter.lora_alpha());
  if (adapter.has_lora_dropout()) lora.set_lora_dropout(adapter.lora_dropout());
  if (!adapter.target_modules().empty()) {
    *lora.mutable_target_modules() = adapter.target_modules();
    lora.clear_target_modules_regex();
  }
  if (adapter.has_learning_rate()) {
    own.mutable_training()->set_learning_rate(adapter.learning_rate());
  }
  if (adapter.has_seed()) own.set_seed(adapter.seed());
  if (adapter.has_train_file()) own.mutable_data()->set_train_file(adapter.train_file());
  if (adapter.has_eval_file()) {
    own.mutable_data()->set_eval_file(adapter.eval_file());
    own.mutable_data()->set_eval_fraction(0);
  }
  return result;
}

// Lists of one dimension of the grid: one empty choice where the job gives none.
template <class Values, class Set>
void Multiply(const Values& values, const char* label, Set set,
              std::vector<std::pair<std::string, SweepAdapter>>* grid) {
  if (values.empty()) return;
  std::vector<std::pair<std::string, SweepAdapter>> product;
  for (const auto& [name, adapter] : *grid) {
    for (const auto value : values) {
      auto& [longer, next] = product.emplace_back(name, adapter);
      absl::StrAppend(&longer, longer.empty() ? "" : "-", label, value);
      set(&next, value);
    }
  }
  *grid = std::move(product);
}

int64_t GridSize(const Sweep& sweep) {
  if (sweep.ranks().empty() && sweep.learning_rates().empty() && sweep.seeds().empty()) return 0;
  const auto choices = [](int size) { return int64_t{size > 0 ? size : 1}; };
  return choices(sweep.ranks_size()) * choices(sweep.learning_rates_size()) *
         choices(sweep.seeds_size());
}

int64_t AdapterCount(const Sweep& sweep) { return sweep.adapter_size() + GridSize(sweep); }

// Of a folder below output_dir. Names that something else there has are refused where those are
// known (engine/commands/sweep_setup.cc).
void CheckName(const std::string& name, const std::string& path, JobProblems& problems) {
  bool plain = !name.empty() && name.size() <= 100 && name[0] != '.';
  for (const char c : name) {
    plain = plain && (absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-');
  }
  if (!plain) {
    problems.Add(path + ".name", absl::StrCat("\"", name, "\""),
                 "at most 100 letters, digits, '.', '_' and '-', not beginning with '.'",
                 "it is the name of a folder");
  }
}

void CheckRaise(const Job& job, JobProblems& problems) {
  std::set<int> ranks;
  std::set<std::string> held_out;
  for (const SweepJob& own : SweepJobs(WithDefaults(job))) {
    ranks.insert(own.job.lora().r());
    held_out.insert(HeldOutData(own.job));
    if (!HasHeldOutData(own.job)) {
      problems.Add("sweep.raise_rank", absl::StrCat("true, ", own.name, " without held-out data"),
                   "with data.eval_file or data.eval_fraction",
                   "give one of them, or remove raise_rank");
    }
  }
  if (held_out.size() > 1) {
    problems.Add("sweep.raise_rank", "true with several sets of held-out data", "with one",
                 "only what is held against the same samples can be compared: give all the same "
                 "eval_file, or remove raise_rank");
  }
  if (ranks.size() < 2) {
    problems.Add("sweep.raise_rank", "true with one rank", "with two or more in sweep.ranks",
                 "give the ranks to go through, or remove raise_rank");
  }
}

}  // namespace

std::vector<SweepJob> SweepJobs(const Job& job) {
  const Sweep& sweep = job.sweep();
  std::vector<SweepJob> jobs;
  if (AdapterCount(sweep) > kMaxAdapters) return jobs;
  for (int i = 0; i < sweep.adapter_size(); ++i) {
    const SweepAdapter& adapter = sweep.adapter(i);
    jobs.push_back(WithOverrides(job, NameOf(adapter, i), PathOf(i), adapter));
  }
  if (GridSize(sweep) == 0) return jobs;
  std::vector<std::pair<std::string, SweepAdapter>> grid(1);
  Multiply(
      sweep.ranks(), "r", [](SweepAdapter* a, int32_t r) { a->set_r(r); }, &grid);
  Multiply(
      sweep.learning_rates(), "lr", [](SweepAdapter* a, double lr) { a->set_learning_rate(lr); },
      &grid);
  Multiply(
      sweep.seeds(), "seed", [](SweepAdapter* a, uint64_t seed) { a->set_seed(seed); }, &grid);
  const char* path = !sweep.ranks().empty()            ? "sweep.ranks"
                     : !sweep.learning_rates().empty() ? "sweep.learning_rates"
                                                       : "sweep.seeds";
  for (const auto& [name, adapter] : grid) jobs.push_back(WithOverrides(job, name, path, adapter));
  return jobs;
}

std::string HeldOutData(const Job& job) {
  const Data& data = job.data();
  if (!HasHeldOutData(job)) return "";
  if (data.has_eval_file()) return data.eval_file();
  return absl::StrCat(data.eval_fraction(), " of ", data.train_file(), ", seed ", job.seed());
}

void CheckSweep(const Job& job, JobProblems& problems) {
  if (!job.has_sweep()) return;
  const Sweep& sweep = job.sweep();
  if (job.mode() == Mode::FULL) {
    problems.Add("sweep", "a sweep in mode FULL", "modes QLORA and LORA",
                 "adapters share a frozen base: set mode: QLORA or LORA, or remove sweep");
  }
  for (int i = 0; i < sweep.adapter_size(); ++i) {
    CheckName(NameOf(sweep.adapter(i), i), PathOf(i), problems);
    CheckTargetNames(sweep.adapter(i).target_modules(), PathOf(i) + ".target_modules", problems);
  }
  if (AdapterCount(sweep) > kMaxAdapters) {
    problems.Add("sweep", absl::StrCat(AdapterCount(sweep), " adapters"),
                 absl::StrCat("at most ", kMaxAdapters), "split it into several sweeps");
    return;
  }
  std::map<std::string, std::string> first;
  for (const SweepJob& own : SweepJobs(job)) {
    const auto [at, is_new] = first.emplace(own.name, own.path);
    if (is_new) continue;
    problems.Add(own.path, absl::StrCat("the name \"", own.name, "\" as ", at->second, " has it"),
                 "each name once", "each adapter has a folder of its own");
  }
  if (sweep.raise_rank()) CheckRaise(job, problems);
}

void CheckSweepIsAsked(const Job& job, JobProblems& problems) {
  if (AdapterCount(job.sweep()) > 0) return;
  problems.AddAbsent("sweep", "give sweep.adapter, or one of sweep.ranks, .learning_rates, .seeds");
}

void CheckSweepCommand(const Job& job, JobProblems& problems) {
  CheckSweepIsAsked(job, problems);
  for (int i = 0; i < job.sweep().adapter_size(); ++i) {
    if (job.data().has_train_file() || job.sweep().adapter(i).has_train_file()) continue;
    problems.AddAbsent(PathOf(i) + ".train_file", "give a JSONL file, here or as data.train_file");
  }
  if (GridSize(job.sweep()) > 0 && !job.data().has_train_file()) {
    problems.AddAbsent("data.train_file", "give a JSONL file");
  }
}

}  // namespace qlora::proto
