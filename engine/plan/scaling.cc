#include "engine/plan/scaling.h"

namespace qlora::engine {

double ExchangeSeconds(int ranks, const Traffic& traffic, const Network& network) {
  const double n = ranks;
  return (n - 1) / n * traffic.bytes / network.bytes_per_second +
         (n - 1) * traffic.operations * network.latency_seconds;
}

ScalePoint PredictStep(int ranks, double step_seconds, double tokens, const Traffic& traffic,
                       const Network& network) {
  ScalePoint point{.ranks = ranks,
                   .communication_seconds = ExchangeSeconds(ranks, traffic, network)};
  point.step_seconds = step_seconds + point.communication_seconds;
  point.tokens_per_second = ranks * tokens / point.step_seconds;
  point.efficiency = step_seconds / point.step_seconds;
  return point;
}

std::vector<ScalePoint> PredictScaling(double step_seconds, double tokens, const Traffic& traffic,
                                       int most_ranks, const Network& network) {
  std::vector<ScalePoint> points;
  for (int64_t ranks = 1; ranks < most_ranks; ranks *= 2) {
    points.push_back(PredictStep(int(ranks), step_seconds, tokens, traffic, network));
  }
  points.push_back(PredictStep(most_ranks, step_seconds, tokens, traffic, network));
  return points;
}

}  // namespace qlora::engine
