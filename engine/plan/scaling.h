// What a step takes on many ranks, from one rank's time and the bytes that are moved. SCALING.md
// beside this file has the model.

#ifndef QLORA_ENGINE_PLAN_SCALING_H_
#define QLORA_ENGINE_PLAN_SCALING_H_

#include <cstdint>
#include <vector>

namespace qlora::engine {

struct Network {
  double bytes_per_second = 25e9;  // that a rank sends, and at the same time receives
  double latency_seconds = 2e-5;   // of a message
};

// What all ranks exchange. In an operation every rank has its share of some bytes and hands it to
// all others, or takes the sum of it from all of them: each sends (n − 1)/n of the bytes, in n − 1
// messages. A sum that is left on all ranks is two operations.
struct Traffic {
  double bytes = 0, operations = 0;
  friend Traffic operator+(const Traffic& a, const Traffic& b) {
    return {a.bytes + b.bytes, a.operations + b.operations};
  }
  friend Traffic operator*(double times, const Traffic& t) {
    return {times * t.bytes, times * t.operations};
  }
};
double ExchangeSeconds(int ranks, const Traffic& traffic, const Network& network);

struct ScalePoint {
  int ranks = 1;
  double step_seconds = 0, communication_seconds = 0;
  double tokens_per_second = 0;  // of all ranks
  double efficiency = 1;         // tokens_per_second / (ranks · one rank's)
};

// Each rank does the work of `step_seconds` over `tokens` beside the traffic of a step.
ScalePoint PredictStep(int ranks, double step_seconds, double tokens, const Traffic& traffic,
                       const Network& network);
// That for every power of two up to `most_ranks`, and that number itself.
std::vector<ScalePoint> PredictScaling(double step_seconds, double tokens, const Traffic& traffic,
                                       int most_ranks, const Network& network);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_SCALING_H_
