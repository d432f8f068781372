// The measured order of the 4-bit types beside the published one, and why they differ where they
// do.

#ifndef QLORA_ENGINE_DRIFT_DRIFT_ORDER_H_
#define QLORA_ENGINE_DRIFT_DRIFT_ORDER_H_

#include <string>
#include <vector>

#include "engine/drift/compare.h"
#include "proto/drift_report.pb.h"

namespace qlora::engine {

// KL per token of `a` less that of `b`, with its standard error over the samples (paired: both saw
// the same ones; a ratio of sums, so that long samples count for more).
struct KlDifference {
  double mean = 0, error = 0;
};
KlDifference CompareKl(const ModelScore& a, const ModelScore& b);
// Standard error of one model's KL per token, likewise.
double KlError(const ModelScore& model);

struct RankedType {
  std::string name;
  const ModelScore* score = nullptr;  // borrowed
  double snr_db = 0;
};

// Sets published_order, measured_order (by KL, worst first) and differences: one for each
// neighbouring pair of `published` (worst first) that was measured the other way round.
void ReportOrder(const std::vector<RankedType>& published, proto::DriftReport* report);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_DRIFT_ORDER_H_
