#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/plan/plan.h"
#include "engine/report/sweep_report.h"

namespace qlora::engine {
namespace {

using proto::SweepReport;
using Adapters = std::vector<const SweepReport::Adapter*>;

Adapters Trained(const SweepReport& report) {
  Adapters trained;
  for (const SweepReport::Adapter& adapter : report.adapter()) {
    if (IsTrained(adapter)) trained.push_back(&adapter);
  }
  return trained;
}

// Held-out losses of all can be compared: they are there, and of the same data.
bool AreComparable(const Adapters& trained) {
  return !trained.empty() && std::all_of(trained.begin(), trained.end(), [&](const auto* adapter) {
    return adapter->has_eval_loss() && adapter->held_out() == trained.front()->held_out();
  });
}

bool AllHaveExactMatch(const Adapters& trained) {
  return std::all_of(trained.begin(), trained.end(),
                     [](const auto* adapter) { return adapter->has_exact_match(); });
}

// Where all answer everything right, none can be better.
bool ExactMatchDecides(const Adapters& trained) {
  const double first = trained.front()->exact_match();
  return first == 1 || std::any_of(trained.begin(), trained.end(), [&](const auto* adapter) {
           return adapter->exact_match() != first;
         });
}

// Chooses the metric, and says why.
void ChooseMetric(SweepReport* report) {
  const Adapters trained = Trained(*report);
  if (!AreComparable(trained)) return report->set_metric(SweepReport::NONE);
  const bool has_exact = AllHaveExactMatch(trained);
  const bool by_exact = has_exact && (trained.size() == 1 || ExactMatchDecides(trained));
  report->set_metric(by_exact ? SweepReport::EXACT_MATCH : SweepReport::LOSS);
  if (trained.size() == 1) return;
  report->set_compared_by(
      by_exact ? "compared by the share of answers that are right to the letter"
      : has_exact
          ? absl::StrFormat("compared by held-out loss: all have the same share of answers right, "
                            "%.1f %%, which tells none apart",
                            100 * trained.front()->exact_match())
          : "compared by held-out loss: no answers were generated (eval.exact_match)");
}

std::string Shown(double value, SweepReport::Metric metric) {
  return metric == SweepReport::EXACT_MATCH
             ? absl::StrFormat("%.1f %% of answers exact", 100 * value)
             : absl::StrFormat("held-out loss %.4f", value);
}

// "r8, held-out loss 1.2345".
std::string Shown(const SweepReport& report, const SweepReport::Adapter& adapter) {
  return absl::StrCat(adapter.name(), ", ",
                      Shown(*MetricOf(adapter, report.metric()), report.metric()));
}

std::string EnoughVerdict(const SweepReport& report, const SweepReport::Adapter& best,
                          const SweepReport::Adapter& smallest) {
  const std::string text =
      absl::StrFormat("rank %d is enough: %s, adapter %s", smallest.r(), Shown(report, smallest),
                      FormatBytes(smallest.adapter_bytes()));
  if (smallest.name() == best.name()) return text + "; it is the best as well";
  return absl::StrCat(text, "; the best is ", Shown(report, best), " (rank ", best.r(), "), ",
                      absl::StrFormat("%.2f %% better; tolerance %.2f %%",
                                      100 * Gain(*MetricOf(smallest, report.metric()),
                                                 *MetricOf(best, report.metric()), report.metric()),
                                      100 * report.tolerance()));
}

// The first of the best.
const SweepReport::Adapter* BestOf(const Adapters& adapters, SweepReport::Metric metric) {
  const SweepReport::Adapter* best = adapters.front();
  for (const SweepReport::Adapter* adapter : adapters) {
    if (Gain(*MetricOf(*best, metric), *MetricOf(*adapter, metric), metric) > 0) best = adapter;
  }
  return best;
}

// Those that the verdict leaves out: "; r2, r4 miss a gate".
std::string Missing(const Adapters& trained) {
  std::vector<std::string> names;
  for (const SweepReport::Adapter* adapter : trained) {
    if (MissesGate(*adapter)) names.push_back(adapter->name());
  }
  if (names.empty()) return "";
  return absl::StrCat("; ", absl::StrJoin(names, ", "),
                      names.size() == 1 ? " misses a gate" : " miss a gate");
}

// Of the good enough ones' smallest rank the best.
const SweepReport::Adapter* SmallestOf(const SweepReport& report) {
  Adapters smallest;
  for (const SweepReport::Adapter& adapter : report.adapter()) {
    if (!adapter.good_enough()) continue;
    if (!smallest.empty() && adapter.r() > smallest.front()->r()) continue;
    if (!smallest.empty() && adapter.r() < smallest.front()->r()) smallest.clear();
    smallest.push_back(&adapter);
  }
  return BestOf(smallest, report.metric());
}

bool HasSeveralRanks(const Adapters& trained) {
  return std::any_of(trained.begin(), trained.end(),
                     [&](const auto* adapter) { return adapter->r() != trained.front()->r(); });
}

}  // namespace

bool IsTrained(const SweepReport::Adapter& adapter) { return adapter.not_trained().empty(); }

bool MissesGate(const SweepReport::Adapter& adapter) {
  return IsTrained(adapter) &&
         std::any_of(adapter.gates().begin(), adapter.gates().end(),
                     [](const SweepReport::Gate& gate) { return !gate.passed(); });
}

bool Passes(const SweepReport::Adapter& adapter) {
  return IsTrained(adapter) && !MissesGate(adapter);
}

std::optional<double> MetricOf(const SweepReport::Adapter& adapter, SweepReport::Metric metric) {
  if (metric == SweepReport::LOSS && adapter.has_eval_loss()) return adapter.eval_loss();
  if (metric == SweepReport::EXACT_MATCH && adapter.has_exact_match()) {
    return adapter.exact_match();
  }
  return std::nullopt;
}

double Gain(double before, double after, SweepReport::Metric metric) {
  if (metric == SweepReport::EXACT_MATCH) return after - before;
  return before == after ? 0 : (before - after) / before;
}

void JudgeSweep(SweepReport* report) {
  for (SweepReport::Adapter& adapter : *report->mutable_adapter()) {
    if (IsTrained(adapter) && adapter.has_eval_loss() && !std::isfinite(adapter.eval_loss())) {
      adapter.set_not_trained("its held-out loss is not finite");
    }
  }
  ChooseMetric(report);
  const Adapters trained = Trained(*report);
  const SweepReport::Metric metric = report->metric();
  if (metric == SweepReport::NONE) {
    report->set_verdict(
        trained.empty()
            ? "no verdict on ranks: no adapter has a result"
            : "no verdict on ranks: not all adapters were held against the same held-out data");
    return;
  }
  Adapters passing;
  std::copy_if(trained.begin(), trained.end(), std::back_inserter(passing),
               [](const auto* adapter) { return Passes(*adapter); });
  const SweepReport::Adapter& best = *BestOf(passing.empty() ? trained : passing, metric);
  report->set_best(best.name());
  if (passing.empty()) {
    report->set_verdict(
        absl::StrCat("no rank passes the gates; the best is ", Shown(*report, best)));
    return;
  }
  for (SweepReport::Adapter& adapter : *report->mutable_adapter()) {
    if (!Passes(adapter)) continue;
    const double behind = Gain(*MetricOf(adapter, metric), *MetricOf(best, metric), metric);
    adapter.set_good_enough(behind <= report->tolerance());
  }
  if (!HasSeveralRanks(trained)) {
    report->set_verdict(absl::StrCat("no verdict on ranks: rank ", best.r(),
                                     " alone shows nothing about others; its best is ",
                                     Shown(*report, best)));
    return;
  }
  const SweepReport::Adapter& smallest = *SmallestOf(*report);
  report->set_smallest(smallest.name());
  report->set_verdict(EnoughVerdict(*report, best, smallest) + Missing(trained));
}

}  // namespace qlora::engine
