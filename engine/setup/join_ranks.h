// How a run joins the other ranks before anything large is read, and leaves them.

#ifndef QLORA_ENGINE_SETUP_JOIN_RANKS_H_
#define QLORA_ENGINE_SETUP_JOIN_RANKS_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// Once the device is open and before anything large is read, which one rank of each machine does
// for the others there: refuses, on all ranks, jobs that differ, then opens the link between the
// devices' memory and the exchange over it. Nothing without ranks.
absl::Status JoinRanks(Setup* setup);

// The base's hash, from the rank that has read it for this machine's.
absl::Status TakeBaseHash(Setup* setup);

// Tells the others that this rank gets on, within its phase; empty without ranks.
std::function<void()> TellProgress(Ranks* ranks);

// Tells the others what this rank does from now on. Nothing without ranks, as the next.
void EnterPhase(Ranks* ranks, Phase phase, const std::string& detail = "");

// Comes back when all ranks are here.
absl::Status Meet(Ranks* ranks, const std::string& what);

// Closes the link before the memory goes that it may still be reading. With an error of this rank's
// own, the others learn of it first.
void LeaveRanks(Ranks* ranks, const absl::Status& status);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_SETUP_JOIN_RANKS_H_
