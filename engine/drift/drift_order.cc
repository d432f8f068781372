#include "engine/drift/drift_order.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_format.h"

namespace qlora::engine {
namespace {

// With S samples of n tokens and sums x, mean R = Σx / Σn: its standard error is
// √(S/(S−1) · Σ(x − R·n)²) / Σn (the ratio estimator's).
KlDifference MeanOf(const std::vector<SampleScore>& samples, const std::vector<double>& sums) {
  double total = 0, tokens = 0, squares = 0;
  int64_t count = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    total += sums[i];
    tokens += double(samples[i].tokens);
    count += samples[i].tokens > 0;
  }
  if (tokens == 0) return {};
  const double mean = total / tokens;
  for (size_t i = 0; i < samples.size(); ++i) {
    const double d = sums[i] - mean * double(samples[i].tokens);
    squares += d * d;
  }
  if (count < 2) return {mean, std::numeric_limits<double>::infinity()};
  return {mean, std::sqrt(double(count) / double(count - 1) * squares) / tokens};
}

std::string Explain(const RankedType& worse, const RankedType& better) {
  const KlDifference d = CompareKl(*better.score, *worse.score);
  std::string text = absl::StrFormat(
      "%s was published as worse than %s and has the lower KL here, %.6f against %.6f: ",
      worse.name, better.name, worse.score->Kl(), better.score->Kl());
  if (d.mean < 2 * d.error) {
    absl::StrAppendFormat(&text,
                          "by %.2g with a standard error of %.2g, which these %d tokens cannot "
                          "tell apart; a larger drift.max_samples may",
                          d.mean, d.error, better.score->tokens);
    return text;
  }
  absl::StrAppendFormat(&text, "by %.2g with a standard error of %.2g. ", d.mean, d.error);
  if (worse.snr_db > better.snr_db) {
    absl::StrAppendFormat(
        &text,
        "The weights say the same, %.2f dB of SNR against %.2f: it is this model's weights, at "
        "this "
        "block size, that suit it. The published order is that of mean perplexities over other "
        "models (125M to 13B)",
        worse.snr_db, better.snr_db);
  } else {
    absl::StrAppendFormat(
        &text,
        "By the SNR of the weights, %.2f dB against %.2f, the published order holds: on these data "
        "its larger errors lie where they matter less. The published order is that of mean "
        "perplexities over other models and data",
        worse.snr_db, better.snr_db);
  }
  return text;
}

}  // namespace

KlDifference CompareKl(const ModelScore& a, const ModelScore& b) {
  std::vector<double> sums;
  for (size_t i = 0; i < a.samples.size(); ++i) sums.push_back(a.samples[i].kl - b.samples[i].kl);
  return MeanOf(a.samples, sums);
}

double KlError(const ModelScore& model) {
  std::vector<double> sums;
  for (const SampleScore& sample : model.samples) sums.push_back(sample.kl);
  return MeanOf(model.samples, sums).error;
}

void ReportOrder(const std::vector<RankedType>& published, proto::DriftReport* report) {
  std::vector<const RankedType*> measured;
  for (const RankedType& type : published) {
    report->add_published_order(type.name);
    measured.push_back(&type);
  }
  std::stable_sort(measured.begin(), measured.end(), [](const RankedType* a, const RankedType* b) {
    return a->score->Kl() > b->score->Kl();
  });
  for (const RankedType* type : measured) report->add_measured_order(type->name);
  for (size_t i = 0; i + 1 < published.size(); ++i) {
    const RankedType &worse = published[i], &better = published[i + 1];
    if (worse.score->Kl() >= better.score->Kl()) continue;
    proto::OrderDifference* difference = report->add_differences();
    difference->set_expected_worse(worse.name);
    difference->set_expected_better(better.name);
    difference->set_explanation(Explain(worse, better));
  }
}

}  // namespace qlora::engine
