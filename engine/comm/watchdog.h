// When a rank counts as lost. Pure: told what was heard and when, asked for a verdict; rank 0 runs
// it over all ranks.
//
// A process that is stopped, or cut off, sends no heartbeats: silence. One whose main thread hangs
// still sends them, and is told by its phase: each has a limit of its own, and inside a collective
// nobody may wait longer than the silence limit once all have arrived in it or in another: then the
// one that is the farthest behind holds up the others.

#ifndef QLORA_ENGINE_COMM_WATCHDOG_H_
#define QLORA_ENGINE_COMM_WATCHDOG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace qlora::engine {

enum class Phase : uint8_t {
  kStarting,    // reading the job, the model's description, the data
  kLoading,     // reading and quantizing weights
  kComputing,   // forward, backward, update: until the next micro-batch or collective
  kCollective,  // in a sum, a broadcast or an agreement, by its number
  kEvaluating,  // one batch, or one token of generated answers
  kSaving,      // a checkpoint, results
  kFinished,
};
inline constexpr int kPhases = int(Phase::kFinished) + 1;
const char* NameOf(Phase phase);
// Seconds that a rank may stay in a phase without telling of progress; infinite for kCollective,
// whose limit depends on the others, and kFinished.
double LimitOf(Phase phase);

// What a rank says of itself.
struct Heartbeat {
  Phase phase = Phase::kStarting;
  int64_t progress = 0;    // grows with every change of phase and every piece of work done in one
  int64_t collective = 0;  // how many it has entered
  std::string detail;      // "gradients of step 12"
};

// "saving (checkpoint-20)".
std::string Describe(const Heartbeat& beat);

class Watchdog {
 public:
  // Seconds on any clock that only goes forward.
  Watchdog(int ranks, double silence_limit, double now);

  void Heard(int rank, const Heartbeat& beat, double now);
  // Whoever tells of what is heard has stood still itself, with the whole job perhaps: all count as
  // heard of, and as getting on, from now.
  void Restart(double now);

  struct Verdict {
    int rank = 0;        // −1: all of them hang together
    std::string reason;  // "rank 2 was silent for 60 s; last heard of: saving (checkpoint-20)"
  };
  // The first rank that is lost; none where all is well.
  std::optional<Verdict> Check(double now) const;

 private:
  struct State {
    double heard, progressed;
    Heartbeat beat;
  };
  const double silence_limit_;
  std::vector<State> ranks_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_WATCHDOG_H_
