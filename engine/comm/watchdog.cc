#include "engine/comm/watchdog.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace qlora::engine {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

}  // namespace

std::string Describe(const Heartbeat& beat) {
  return absl::StrCat(NameOf(beat.phase), beat.detail.empty() ? "" : " (", beat.detail,
                      beat.detail.empty() ? "" : ")");
}

const char* NameOf(Phase phase) {
  static constexpr const char* kNames[kPhases] = {
      "starting", "loading", "computing", "collective", "evaluating", "saving", "finished"};
  return kNames[int(phase)];
}

double LimitOf(Phase phase) {
  switch (phase) {
    case Phase::kStarting:
    case Phase::kLoading:
      return 3600;  // a large file over a slow network
    case Phase::kComputing:
    case Phase::kEvaluating:
      return 1800;  // the largest micro-batch on the slowest CPU
    case Phase::kSaving:
      return 1800;
    case Phase::kCollective:
    case Phase::kFinished:
      return kNever;
  }
  return kNever;
}

Watchdog::Watchdog(int ranks, double silence_limit, double now)
    : silence_limit_(silence_limit), ranks_(ranks, State{now, now, {}}) {}

void Watchdog::Heard(int rank, const Heartbeat& beat, double now) {
  State& state = ranks_[rank];
  state.heard = now;
  if (beat.progress != state.beat.progress) state.progressed = now;
  state.beat = beat;
}

void Watchdog::Restart(double now) {
  for (State& state : ranks_) state.heard = state.progressed = now;
}

std::optional<Watchdog::Verdict> Watchdog::Check(double now) const {
  bool all_in_collectives = true;
  double latest_arrival = 0;
  int last = 0, abreast = 0;  // the rank farthest behind, and how many are where it is
  for (int rank = 0; rank < int(ranks_.size()); ++rank) {
    const State& s = ranks_[rank];
    latest_arrival = std::max(latest_arrival, s.progressed);
    all_in_collectives = all_in_collectives && s.beat.phase == Phase::kCollective;
    const int64_t behind = ranks_[last].beat.collective - s.beat.collective;
    if (behind > 0) last = rank;
    abreast = behind > 0 ? 1 : abreast + (behind == 0);
  }
  for (int rank = 0; rank < int(ranks_.size()); ++rank) {
    const State& s = ranks_[rank];
    if (s.beat.phase == Phase::kFinished) continue;
    if (now - s.heard > silence_limit_) {
      return Verdict{rank, absl::StrFormat("rank %d was silent for %.0f s; last heard of: %s", rank,
                                           now - s.heard, Describe(s.beat))};
    }
    if (now - s.progressed > LimitOf(s.beat.phase)) {
      return Verdict{rank, absl::StrFormat("rank %d made no progress for %.0f s: %s", rank,
                                           now - s.progressed, Describe(s.beat))};
    }
  }
  // Who watches one rank alone does not know whom that one waits for.
  if (ranks_.size() < 2 || !all_in_collectives || now - latest_arrival <= silence_limit_) {
    return std::nullopt;
  }
  const Heartbeat& beat = ranks_[last].beat;
  if (abreast == int(ranks_.size())) {
    return Verdict{-1, absl::StrFormat("all ranks have been in collective %d (%s) for %.0f s, and "
                                       "it does not end",
                                       beat.collective, beat.detail, now - latest_arrival)};
  }
  return Verdict{last, absl::StrFormat("rank %d does not get past collective %d (%s), where the "
                                       "others have waited for it for %.0f s",
                                       last, beat.collective, beat.detail, now - latest_arrival)};
}

}  // namespace qlora::engine
