// What a step takes on many ranks, from one rank's time and the bytes that are moved. SCALING.md
// beside this file has the model and what it was compared with.

#ifndef QLORA_ENGINE_PLAN_SCALING_H_
#define QLORA_ENGINE_PLAN_SCALING_H_

#include <cstdint>
#include <vector>

namespace qlora::engine {

struct Network {
  double bytes_per_second = 0;  // that a rank sends, and at the same time receives
  double latency_seconds = 0;   // of a message
};

// A sum of `bytes` over all ranks that leaves it on all of them: each sends (n − 1)/n of it twice,
// in n − 1 messages each time.
double SumSeconds(int ranks, double bytes, const Network& network);

struct ScalePoint {
  int ranks = 1;
  double step_seconds = 0, communication_seconds = 0;
  double tokens_per_second = 0;  // of all ranks
  double efficiency = 1;         // tokens_per_second / (ranks · one rank's)
};

// For every power of two up to `most_ranks`, and that number itself. Each rank does the work of
// `step_seconds` over `tokens` and then takes part in a sum of `summed_bytes`.
std::vector<ScalePoint> PredictScaling(double step_seconds, double tokens, double summed_bytes,
                                       int most_ranks, const Network& network);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_SCALING_H_
