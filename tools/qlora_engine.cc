// qlora_engine COMMAND job.textproto [--set path=value ...]
//
// Parses the command line and the job, checks it, hands it to the engine, and turns the outcome
// into an exit code.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/comm/ranks.h"
#include "engine/comm/stop_request.h"
#include "engine/commands/commands.h"
#include "engine/commands/doctor.h"
#include "engine/commands/sweep.h"
#include "engine/commands/train.h"
#include "engine/commands/verify.h"
#include "engine/drift/quantize_base.h"
#include "engine/drift/report_drift.h"
#include "engine/input_error.h"
#include "engine/lora/targets.h"
#include "engine/merge/merge_command.h"
#include "engine/setup/setup.h"
#include "engine/version.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"
#include "proto/job_check.h"

namespace qlora {
namespace {

constexpr char kUsage[] =
    "usage: qlora_engine COMMAND job.textproto [--set path=value ...]\n"
    "       qlora_engine verify FOLDER\n"
    "       qlora_engine doctor\n"
    "commands:\n"
    "  train     fine-tune; goes on from the newest checkpoint in output_dir\n"
    "  plan      what training would take, here or on a named card: memory, time, money\n"
    "  inspect   the data as the model will see it, the tensors, the targets matched\n"
    "  eval      loss, perplexity and exact match on a file\n"
    "  generate  text from a prompt\n"
    "  quantize  write the 4-bit checkpoint and what its weights lost\n"
    "  drift     what 4 bits cost on a file, against 16 bits\n"
    "  merge     fold an adapter into its base, each way scored on a file\n"
    "  sweep     several adapters in one run over one base: ranks, rates, seeds, or one per "
    "customer\n"
    "  verify    check the checkpoints and the result of an output folder\n"
    "  doctor    what this machine can do, and what it lacks\n"
    "  version   print the version\n"
    "--set sets one field of the job: --set training.learning_rate=1e-4\n"
    "several processes train together under mpirun or srun, or, each with a GPU, by hand:\n"
    "  --rank R --world N --rendezvous HOST:PORT   this is process R of N; process 0 listens "
    "there\n";

constexpr int64_t kMaxJobBytes = 1 << 20;

engine::StopFlag stop;

// The first signal asks for an end: of training with a checkpoint, of what writes a model without
// what it has written so far. The second ends at once. SIGUSR1, which mpirun and Slurm pass on
// without killing soon after, asks for the same as SIGTERM.
void OnSignal(int number) {
  if (number == SIGUSR1) number = SIGTERM;
  if (stop.signal != 0) _exit(128 + number);
  if (stop.heeded == 0) {
    constexpr char kMessage[] =
        "error: stopped before the first step of this run: there was nothing to save\n";
    [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
    _exit(128 + number);
  }
  stop.signal = number;
}

// What is small and not planned is taken with `new`. On any thread: nothing can be unwound here,
// and nothing has to be, since no file that counts is ever half written.
void OnNoMemory() {
  constexpr char kMessage[] =
      "error: the system refused memory beside what was planned (see ulimit -v, and other "
      "programs). Results and checkpoints are as they were\n";
  [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  _exit(proto::kExitDoesNotFit);
}

// Where there is nothing to save or to clear away a signal ends the process.
void TakeStopSignals() {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  // Not SA_RESTART: a line that nobody takes any more, as from ranks whose mpirun is about to kill
  // them, would be waited for in front of the checkpoint.
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
}

void InstallHandlers(bool trains) {
  std::set_new_handler(OnNoMemory);
  if (trains) TakeStopSignals();
  // A write beyond a file size limit shall be an error, not the end.
  signal(SIGXFSZ, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
}

std::optional<proto::Command> CommandOf(const std::string& name) {
  if (name == "train") return proto::Command::kTrain;
  if (name == "plan") return proto::Command::kPlan;
  if (name == "inspect") return proto::Command::kInspect;
  if (name == "eval") return proto::Command::kEval;
  if (name == "generate") return proto::Command::kGenerate;
  if (name == "quantize") return proto::Command::kQuantize;
  if (name == "drift") return proto::Command::kDrift;
  if (name == "merge") return proto::Command::kMerge;
  if (name == "sweep") return proto::Command::kSweep;
  return std::nullopt;
}

struct Arguments {
  std::string command, target;
  std::vector<std::string> overrides;
  engine::LaunchOptions launch;
};

// The value of "--name value" or "--name=value" at words[*i]; none where another word stands there.
std::optional<std::string> TakeOption(const std::vector<std::string>& words, const char* name,
                                      size_t* i) {
  if (words[*i] == name && *i + 1 < words.size()) return words[++*i];
  const std::string prefix = absl::StrCat(name, "=");
  if (absl::StartsWith(words[*i], prefix)) return words[*i].substr(prefix.size());
  return std::nullopt;
}

bool TakeNumber(const std::vector<std::string>& words, const char* name, size_t* i,
                std::optional<int>* to) {
  const std::optional<std::string> text = TakeOption(words, name, i);
  int number;
  if (!text || !absl::SimpleAtoi(*text, &number)) return false;
  *to = number;
  return true;
}

constexpr const char* kOptions[] = {"--set", "--rank", "--world", "--rendezvous"};

// BadJob naming the word that can't be taken.
absl::StatusOr<Arguments> ParseArguments(const std::vector<std::string>& words) {
  Arguments arguments;
  for (size_t i = 0; i < words.size(); ++i) {
    if (const auto set = TakeOption(words, "--set", &i)) {
      arguments.overrides.push_back(*set);
    } else if (const auto place = TakeOption(words, "--rendezvous", &i)) {
      arguments.launch.rendezvous = *place;
    } else if (TakeNumber(words, "--rank", &i, &arguments.launch.rank) ||
               TakeNumber(words, "--world", &i, &arguments.launch.world)) {
      continue;
    } else if (absl::StartsWith(words[i], "-")) {
      const std::string name = words[i].substr(0, words[i].find('='));
      const bool is_known =
          std::find(std::begin(kOptions), std::end(kOptions), name) != std::end(kOptions);
      return proto::BadJobError(is_known
                                    ? absl::StrCat(words[i], ": found no value that it takes")
                                    : absl::StrCat("unknown option \"", words[i],
                                                   "\"; allowed: ", absl::StrJoin(kOptions, ", ")));
    } else if (arguments.command.empty()) {
      arguments.command = words[i];
    } else if (arguments.target.empty()) {
      arguments.target = words[i];
    } else {
      return proto::BadJobError(absl::StrCat("found \"", words[i], "\" behind ", arguments.target,
                                             "; allowed: one job or folder"));
    }
  }
  if (arguments.command.empty()) return proto::BadJobError("found no command");
  const bool verifies = arguments.command == "verify";
  if (!verifies && !CommandOf(arguments.command)) {
    return proto::BadJobError(absl::StrCat("unknown command \"", arguments.command, "\""));
  }
  if (arguments.target.empty()) {
    return proto::BadJobError(
        absl::StrCat(arguments.command, ": found no ", verifies ? "folder" : "job behind it"));
  }
  return arguments;
}

// Ends a process whose main thread hangs in something that the abort of its job can't reach.
void EndAtOnce(const absl::Status& status) {
  const std::string message = absl::StrCat("error: ", std::string(status.message()), "\n");
  [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, message.data(), message.size());
  _exit(proto::ExitCodeOf(status));
}

// Null where this process is alone.
absl::StatusOr<std::unique_ptr<engine::Ranks>> JoinRanks(const Arguments& arguments,
                                                         proto::Command command,
                                                         const proto::Job& job,
                                                         engine::Console* console) {
  absl::StatusOr<engine::World> world = engine::FindWorld(
      arguments.launch, [](const char* name) -> const char* { return getenv(name); });
  if (!world.ok()) return world.status();
  if (world->launched) console->KeepPlain();
  if (world->size == 1) return nullptr;
  if (command != proto::Command::kTrain) {
    return proto::BadJobError(absl::StrCat(arguments.command, " runs in one process; found ",
                                           world->size, ": start it without mpirun or srun"));
  }
  if (arguments.launch.rank && job.device() == proto::DeviceKind::CPU) {
    return proto::BadJobError(
        "device: CPU, and --rank, --world: ranks on CPUs sum over MPI: start them with mpirun");
  }
  if (world->rank != 0) console->Mute(absl::StrCat("rank ", world->rank, ": "));
  return engine::Ranks::Join(
      *world, {.silence_seconds = job.parallel().silence_seconds(), .last_resort = EndAtOnce});
}

void ShowWarnings(const engine::Setup& setup, engine::Console* console) {
  for (const std::string& warning : setup.warnings) console->Warning(warning);
}

// Command `sweep`, and `plan` of a job that asks for one.
absl::Status RunSweep(const proto::Job& job, proto::Command command, engine::Env* env,
                      engine::Console* console) {
  absl::StatusOr<std::unique_ptr<engine::SweepSetup>> sweep =
      engine::PrepareSweep(job, command, env);
  if (!sweep.ok()) return sweep.status();
  for (const auto& adapter : (*sweep)->adapters) ShowWarnings(*adapter.setup, console);
  return command == proto::Command::kPlan ? engine::ShowSweepPlan(**sweep, console)
                                          : engine::Sweep(**sweep, console, &stop);
}

absl::Status RunPrepared(const proto::Job& job, proto::Command command, engine::Env* env,
                         engine::Ranks* ranks, engine::Console* console) {
  const bool plans_sweep = command == proto::Command::kPlan && job.has_sweep();
  if (command == proto::Command::kSweep || plans_sweep) {
    return RunSweep(job, command, env, console);
  }
  absl::StatusOr<std::unique_ptr<engine::Setup>> setup =
      engine::PrepareSetup(job, command, env, ranks);
  if (!setup.ok()) return setup.status();
  ShowWarnings(**setup, console);
  switch (command) {
    case proto::Command::kTrain:
      return engine::Train(**setup, console, &stop);
    case proto::Command::kPlan:
      return engine::ShowPlan({.setups = {setup->get()}, .output_dir = job.output_dir()}, console);
    case proto::Command::kInspect:
      return engine::Inspect(**setup, console);
    case proto::Command::kEval:
      return engine::Evaluate(**setup, console);
    case proto::Command::kGenerate:
      return engine::GenerateText(**setup, console);
    case proto::Command::kQuantize:
      TakeStopSignals();
      stop.heeded = 1;
      return engine::QuantizeBase(**setup, console, &stop.signal);
    case proto::Command::kDrift:
      return engine::ReportDrift(**setup, console);
    case proto::Command::kMerge:
      TakeStopSignals();
      stop.heeded = 1;
      return engine::Merge(**setup, console, &stop.signal);
    case proto::Command::kSweep:
      break;
  }
  return absl::InternalError("unknown command");
}

absl::Status RunJob(const Arguments& arguments, proto::Command command, engine::Console* console) {
  engine::Env* env = engine::Env::Default();
  absl::StatusOr<std::string> text = env->ReadFile(arguments.target, kMaxJobBytes);
  if (!text.ok()) return proto::BadJobError(text.status().message());
  absl::StatusOr<proto::Job> job = proto::LoadJob(*text, arguments.target, arguments.overrides,
                                                  command, engine::CheckTargetPattern);
  if (!job.ok()) return job.status();
  absl::StatusOr<std::unique_ptr<engine::Ranks>> ranks =
      JoinRanks(arguments, command, *job, console);
  if (!ranks.ok()) return ranks.status();
  return RunPrepared(*job, command, env, ranks->get(), console);
}

int Main(const std::vector<std::string>& words) {
  if (!words.empty() && (words[0] == "version" || words[0] == "--version")) {
    std::printf("qlora_engine %s\n", engine::kEngineVersion);
    return proto::kExitDone;
  }
  if (words == std::vector<std::string>{"doctor"}) {
    engine::Console console;
    const absl::Status status = engine::Doctor(&console);
    if (!status.ok()) console.Error(status.message());
    return proto::ExitCodeOf(status);
  }
  const auto asks_for_help = [](const std::string& word) {
    return word == "--help" || word == "-h";
  };
  if ((!words.empty() && words[0] == "help") ||
      std::any_of(words.begin(), words.end(), asks_for_help)) {
    std::fputs(kUsage, stdout);
    return proto::kExitDone;
  }
  const absl::StatusOr<Arguments> arguments = ParseArguments(words);
  if (!arguments.ok()) {
    engine::Console().Error(arguments.status().message());
    std::fputs(kUsage, stderr);
    return proto::kExitBadJob;
  }
  const std::optional<proto::Command> command = CommandOf(arguments->command);
  const bool verify = !command;
  InstallHandlers(command == proto::Command::kTrain || command == proto::Command::kSweep);
  engine::Console console;
  const absl::Status status =
      verify ? engine::Verify(engine::Env::Default(), arguments->target, &console)
             : RunJob(*arguments, *command, &console);
  if (!status.ok()) console.Error(status.message());
  return proto::ExitCodeOf(status);
}

}  // namespace
}  // namespace qlora

int main(int argc, char** argv) {
  return qlora::Main(std::vector<std::string>(argv + 1, argv + argc));
}
