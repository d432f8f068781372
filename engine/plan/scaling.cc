#include "engine/plan/scaling.h"

namespace qlora::engine {

double SumSeconds(int ranks, double bytes, const Network& network) {
  const double n = ranks;
  return 2 * (n - 1) / n * bytes / network.bytes_per_second + 2 * (n - 1) * network.latency_seconds;
}

std::vector<ScalePoint> PredictScaling(double step_seconds, double tokens, double summed_bytes,
                                       int most_ranks, const Network& network) {
  std::vector<int> counts;
  for (int64_t ranks = 1; ranks < most_ranks; ranks *= 2) counts.push_back(int(ranks));
  counts.push_back(most_ranks);
  std::vector<ScalePoint> points;
  for (const int ranks : counts) {
    ScalePoint point{.ranks = ranks,
                     .communication_seconds = SumSeconds(ranks, summed_bytes, network)};
    point.step_seconds = step_seconds + point.communication_seconds;
    point.tokens_per_second = ranks * tokens / point.step_seconds;
    point.efficiency = step_seconds / point.step_seconds;
    points.push_back(point);
  }
  return points;
}

}  // namespace qlora::engine
