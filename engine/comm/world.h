// Which of a job's processes this one is: from the launcher's environment, or as given by hand.

#ifndef QLORA_ENGINE_COMM_WORLD_H_
#define QLORA_ENGINE_COMM_WORLD_H_

#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace qlora::engine {

struct World {
  int rank = 0;
  int size = 1;
  // Where rank 0 listens for the others: "host:port", or "@name", a socket's name among the
  // processes of this machine (unix(7), abstract). Empty with one rank.
  std::string rendezvous;
  // Equal for the processes that a launcher started together, and for those alone: "40012.0", job
  // and step of Slurm's. Empty by hand.
  std::string launch;
  // By mpirun or srun, which give a process a terminal of its own and pass on what it writes.
  bool launched = false;
};

// As given on the command line; either rank and world size, or neither.
struct LaunchOptions {
  std::optional<int> rank, world;
  std::string rendezvous;
};

// The value of an environment variable, null where it is not set.
using EnvironmentOf = std::function<const char*(const char* name)>;

// Looks at the options first, then at what Open MPI's mpirun and Slurm's srun set; without any of
// them the process is alone. Bad job where numbers make no sense, or where ranks on several
// machines have no place to meet.
absl::StatusOr<World> FindWorld(const LaunchOptions& options, const EnvironmentOf& environment);

// The first host of a list as Slurm writes it: "gpu[003-007,9],b1" gives "gpu003",
// "rack[1-2]n[3-4]-ib" "rack1n3-ib". Empty where the text is none.
std::string FirstHost(const std::string& nodelist);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_WORLD_H_
