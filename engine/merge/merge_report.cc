#include "engine/merge/merge_report.h"

#include <google/protobuf/util/json_util.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/io/atomic_file.h"
#include "engine/plan/plan.h"
#include "engine/report/html_page.h"
#include "engine/report/report_json.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

constexpr char kFolder[] = "merge";
constexpr char kJsonFile[] = "merge.json";
constexpr int64_t kMaxJsonBytes = 1 << 20;

std::string Verdict(const proto::MergedModelReport& m) {
  if (m.written()) return m.within_tolerance() ? "written" : "written, over the tolerance";
  return m.within_tolerance() ? "" : "over the tolerance";
}

// The cells of a way's line, but for its name.
std::vector<std::string> Cells(const proto::MergedModelReport& m) {
  return {absl::StrFormat("%.4f", m.loss()),
          absl::StrFormat("%+.4f", m.loss_increase()),
          absl::StrFormat("%.5f", m.kl()),
          absl::StrFormat("%.2f %%", 100 * m.top1_agreement()),
          FormatBytes(m.bytes()),
          absl::StrFormat("%.1f s", m.seconds())};
}

const std::vector<std::string>& Headers() {
  static const auto& headers = *new std::vector<std::string>{
      "loss", "increase", "KL", "same top token", "weights", "merged in"};
  return headers;
}

const char* Meaning(const std::string& into) {
  if (into == "BASE") return "into the weights that the checkpoint stores";
  if (into == "DEQUANTIZED") return "into the 4-bit base's values, stored in 16 bits";
  return "DEQUANTIZED, in 4 bits again";
}

std::string Summary(const proto::MergeReport& report) {
  return absl::StrFormat(
      "%d samples, %d tokens of %s: loss of the base %.4f, with the adapter %.4f. "
      "KL and top tokens are against the adapter beside its base.",
      report.samples(), report.tokens(), report.data(), report.base_loss(), report.adapter_loss());
}

}  // namespace

std::string MergeText(const proto::MergeReport& report) {
  std::string text = Summary(report) + "\n";
  absl::StrAppendFormat(&text, "%-13s", "merged into");
  for (const std::string& header : Headers()) absl::StrAppendFormat(&text, "%15s", header);
  for (const proto::MergedModelReport& m : report.merged()) {
    absl::StrAppendFormat(&text, "\n%-13s", m.into());
    for (const std::string& cell : Cells(m)) absl::StrAppendFormat(&text, "%15s", cell);
    if (!Verdict(m).empty()) absl::StrAppend(&text, "  ", Verdict(m));
  }
  if (!report.output().empty()) absl::StrAppend(&text, "\nwritten: ", report.output());
  return text;
}

std::string MergeHtml(const proto::MergeReport& report) {
  HtmlPage page("Merging an adapter", absl::StrCat(report.adapter(), " into ", report.model()));
  std::vector<KeyFigure> figures = {{"loss, adapter beside its base",
                                     absl::StrFormat("%.4f", report.adapter_loss()),
                                     absl::StrFormat("base alone %.4f", report.base_loss())}};
  BarChart kl{.title = "KL against the adapter beside its base, per token"};
  HtmlTable table{.caption = "Each way of merging", .columns = {{"merged into"}}};
  for (const std::string& header : Headers()) table.columns.push_back({header, true});
  table.columns.push_back({""});
  for (const proto::MergedModelReport& m : report.merged()) {
    if (m.written()) {
      figures.push_back({absl::StrCat("written: ", m.into()),
                         absl::StrFormat("%+.4f", m.loss_increase()), "loss against unmerged",
                         m.within_tolerance() ? KeyFigure::Tone::kGood : KeyFigure::Tone::kBad});
      table.marked_rows.push_back(table.rows.size());
    }
    kl.bars.push_back({m.into(), m.kl(), absl::StrFormat("%.5f", m.kl()), m.written()});
    std::vector<std::string> row = {m.into()};
    for (std::string& cell : Cells(m)) row.push_back(std::move(cell));
    row.push_back(Verdict(m));
    table.rows.push_back(std::move(row));
  }
  if (report.output().empty()) {
    figures.push_back(
        {"written", "nothing",
         absl::StrFormat("more than %.4f over the unmerged loss", report.max_loss_increase()),
         KeyFigure::Tone::kBad});
  }
  page.Figures(figures);
  page.Paragraph(Summary(report));
  page.Table(table);
  page.Chart(kl);
  std::vector<std::string> meanings;
  for (const proto::MergedModelReport& m : report.merged()) {
    meanings.push_back(absl::StrCat(m.into(), ": ", Meaning(m.into())));
  }
  page.List(meanings);
  return page.Finish();
}

absl::Status WriteMergeReport(Env* env, const std::string& output_dir,
                              const proto::MergeReport& report) {
  const absl::StatusOr<std::string> json = ReportJson(report);
  if (!json.ok()) return json.status();
  const std::string folder = JoinPath(output_dir, kFolder);
  absl::Status s = env->CreateFolders(folder);
  if (s.ok()) s = AtomicWriteFile(env, JoinPath(folder, kJsonFile), *json);
  if (s.ok()) s = AtomicWriteFile(env, JoinPath(folder, "merge.html"), MergeHtml(report));
  if (s.ok()) s = AtomicWriteFile(env, JoinPath(folder, "merge.txt"), MergeText(report) + "\n");
  return s.ok() ? s : proto::IoError(s.message());
}

std::optional<proto::MergeReport> ReadMergeReport(Env* env, const std::string& output_dir) {
  const absl::StatusOr<std::string> json =
      env->ReadFile(JoinPath(JoinPath(output_dir, kFolder), kJsonFile), kMaxJsonBytes);
  proto::MergeReport report;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  if (!json.ok() || !google::protobuf::util::JsonStringToMessage(*json, &report, options).ok()) {
    return std::nullopt;
  }
  return report;
}

}  // namespace qlora::engine
