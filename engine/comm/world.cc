#include "engine/comm/world.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/errors.h"
#include "proto/job_ranges.h"

namespace qlora::engine {
namespace {

// Slurm names no port: one of these, by the numbers of the job and its step. Jobs of one machine
// often follow each other, so the steps of one job keep at a distance.
constexpr int64_t kFirstPort = 20000, kPorts = 10000, kPortsBetweenSteps = 101;

absl::Status CheckRank(const char* source, int rank, int size) {
  if (size >= 1 && size <= proto::kMaxRanks && rank >= 0 && rank < size) return absl::OkStatus();
  return proto::BadJobError(absl::StrCat(source, ": found rank ", rank, " of ", size,
                                         "; allowed: 1 to ", proto::kMaxRanks,
                                         " ranks, counted from 0"));
}

class Finder {
 public:
  Finder(const LaunchOptions& options, const EnvironmentOf& environment)
      : options_(options), environment_(environment) {}

  absl::StatusOr<World> Find() const {
    if (options_.rank.has_value() != options_.world.has_value()) {
      return proto::BadJobError(
          "--rank and --world belong together: the number of this process, and how many there are");
    }
    absl::StatusOr<World> world = options_.rank.has_value()     ? ByHand()
                                  : Has("OMPI_COMM_WORLD_SIZE") ? FromOpenMpi()
                                  // In a batch script, before srun, there is one process.
                                  : Has("SLURM_STEP_ID") && Has("SLURM_PROCID") ? FromSlurm()
                                                                                : World{};
    if (!world.ok()) return world.status();
    world->launched =
        !options_.rank.has_value() && (Has("OMPI_COMM_WORLD_SIZE") || Has("SLURM_STEP_ID"));
    if (!options_.rendezvous.empty()) world->rendezvous = options_.rendezvous;
    if (world->size == 1) world->rendezvous.clear();
    if (world->size > 1 && world->rendezvous.empty()) {
      return proto::BadJobError(absl::StrCat(
          "the ", world->size,
          options_.rank.has_value() ? " ranks that are started by hand"
                                    : " ranks run on several machines and",
          " have no place to meet: give all of them --rendezvous HOST:PORT, the machine of rank 0 "
          "and a free port of it"));
    }
    return world;
  }

 private:
  bool Has(const char* name) const { return environment_(name) != nullptr; }
  std::string Text(const char* name) const {
    const char* value = environment_(name);
    return value == nullptr ? "" : value;
  }
  // −1, which no check accepts, where it is no number.
  int Number(const char* name) const {
    int value;
    return absl::SimpleAtoi(Text(name), &value) ? value : -1;
  }

  absl::StatusOr<World> ByHand() const {
    if (absl::Status s = CheckRank("--rank, --world", *options_.rank, *options_.world); !s.ok()) {
      return s;
    }
    return World{.rank = *options_.rank, .size = *options_.world};
  }

  absl::StatusOr<World> FromOpenMpi() const {
    World world{.rank = Number("OMPI_COMM_WORLD_RANK"), .size = Number("OMPI_COMM_WORLD_SIZE")};
    if (absl::Status s =
            CheckRank("OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE", world.rank, world.size);
        !s.ok()) {
      return s;
    }
    // The namespace is the launch's own: two of them on one machine never meet.
    world.launch = Text("PMIX_NAMESPACE");
    if (Number("OMPI_COMM_WORLD_LOCAL_SIZE") == world.size) {
      world.rendezvous = absl::StrCat("@qlora_engine-", getuid(), "-mpi-", world.launch);
    }
    return world;
  }

  absl::StatusOr<World> FromSlurm() const {
    const char* const size = Has("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
    World world{.rank = Number("SLURM_PROCID"), .size = Number(size)};
    if (absl::Status s = CheckRank("SLURM_PROCID, SLURM_STEP_NUM_TASKS", world.rank, world.size);
        !s.ok()) {
      return s;
    }
    const int job = Number("SLURM_JOB_ID"), step = Number("SLURM_STEP_ID");
    world.launch = absl::StrCat(job, ".", Text("SLURM_STEP_ID"));
    const std::string host = FirstHost(Text("SLURM_STEP_NODELIST"));
    if (Number("SLURM_STEP_NUM_NODES") == 1) {
      world.rendezvous = absl::StrCat("@qlora_engine-", getuid(), "-slurm-", world.launch);
    } else if (!host.empty() && job >= 0) {
      world.rendezvous = absl::StrCat(
          host, ":", kFirstPort + (job + kPortsBetweenSteps * std::max(0, step)) % kPorts);
    }
    return world;
  }

  const LaunchOptions& options_;
  const EnvironmentOf& environment_;
};

}  // namespace

absl::StatusOr<World> FindWorld(const LaunchOptions& options, const EnvironmentOf& environment) {
  return Finder(options, environment).Find();
}

std::string FirstHost(const std::string& nodelist) {
  std::string host;
  for (size_t i = 0; i < nodelist.size() && nodelist[i] != ','; ++i) {
    if (nodelist[i] != '[') {
      host += nodelist[i];
      continue;
    }
    const size_t end = nodelist.find_first_of("-,]", i), close = nodelist.find(']', i);
    if (close == std::string::npos) return "";
    host += nodelist.substr(i + 1, end - i - 1);
    i = close;
  }
  return host;
}

}  // namespace qlora::engine
