#include "tests/layout/layout_rules.h"

#include <algorithm>
#include <regex>
#include <set>
#include <sstream>

namespace qlora::layout {
namespace {

bool StartsWith(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}
bool EndsWith(const std::string& text, const std::string& suffix) {
  return text.size() >= suffix.size() &&
         text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

struct Layer {
  std::string name;
  std::set<std::string> sees;  // layers
  std::set<std::string> libraries;
};

const std::vector<Layer>& Layers() {
  static const auto* const kLayers = new std::vector<Layer>{
      {"quant", {"quant"}, {"absl"}},
      {"proto", {"proto"}, {"absl", "google"}},
      {"kernels", {"kernels", "quant"}, {"absl"}},
      {"engine", {"engine", "kernels", "quant", "proto"}, {"absl", "google", "nlohmann"}},
      {"tools", {"tools", "engine", "kernels", "quant", "proto"}, {"absl", "google", "nlohmann"}},
  };
  return *kLayers;
}

const std::set<std::string>& LayerNames() {
  static const auto* const kNames = [] {
    auto* names = new std::set<std::string>{"tests", "bench"};
    for (const Layer& layer : Layers()) names->insert(layer.name);
    return names;
  }();
  return *kNames;
}

bool IsCode(const std::string& path) {
  for (const char* suffix : {".h", ".cc", ".cu", ".cuh", ".inc"}) {
    if (EndsWith(path, suffix)) return true;
  }
  return false;
}

bool IsAcceleratorHeader(const std::string& header) {
  static const std::regex kPattern(
      "(cuda.*|cublas.*|cudnn.*|curand.*|cooperative_groups.*|nccl.*|nvtx.*|nvToolsExt.*|nvml.*|"
      "driver_types|vector_types|device_launch_parameters|mma)(\\.h|\\.hpp|/.*)?");
  return std::regex_match(header, kPattern);
}

// Words that mark unfinished work, put together here so that this file does not hold them itself.
const std::vector<std::string>& UnfinishedMarks() {
  static const auto* const kMarks = new std::vector<std::string>{
      std::string("TO") + "DO", std::string("FIX") + "ME", std::string("XX") + "X:"};
  return *kMarks;
}

// The include of a line: its path, and whether it is in quotes.
bool ParseInclude(const std::string& line, std::string* header, bool* quoted) {
  static const std::regex kInclude("\\s*#\\s*include\\s*([<\"])([^>\"]+)[>\"].*");
  std::smatch match;
  if (!std::regex_match(line, match, kInclude)) return false;
  *quoted = match[1] == "\"";
  *header = match[2];
  return true;
}

std::string FirstFolder(const std::string& path) { return path.substr(0, path.find('/')); }

// What is wrong with one include of a file; empty where nothing is.
std::string IncludeFault(const std::string& path, const std::string& header, bool quoted) {
  if (StartsWith(header, "..")) return "includes a relative path; name it from the layer on";
  const bool accelerated = StartsWith(path, "kernels/cuda/") ||
                           StartsWith(path, "engine/comm/nccl.") ||
                           StartsWith(path, "tests/support/simt/");
  if (IsAcceleratorHeader(header) && !accelerated) {
    return "CUDA and NCCL headers belong in kernels/cuda/ and engine/comm/nccl.*";
  }
  const std::string layer_name = FirstFolder(path);
  if (EndsWith(header, ".pb.h") && (layer_name == "quant" || layer_name == "kernels")) {
    return "quant/ and kernels/ know nothing of protobuf";
  }
  const auto layer = std::find_if(Layers().begin(), Layers().end(),
                                  [&](const Layer& l) { return l.name == layer_name; });
  if (layer == Layers().end()) return "";
  const std::string from = FirstFolder(header);
  if (LayerNames().count(from) != 0) {
    if (layer->sees.count(from) == 0) return layer_name + "/ must not see " + from + "/";
    return quoted ? "" : "our own headers are included in quotes";
  }
  if (quoted && header.find('/') == std::string::npos && !accelerated) {
    return "our own headers are included by their path from the layer on";
  }
  static const std::set<std::string> kKnownLibraries = {"absl", "google", "nlohmann"};
  if (kKnownLibraries.count(from) != 0 && layer->libraries.count(from) == 0) {
    return layer_name + "/ must not see " + from + "/";
  }
  return "";
}

}  // namespace

bool IsChecked(const std::string& path) {
  if (IsCode(path)) return true;
  for (const char* suffix :
       {".py", ".sh", ".proto", ".cmake", ".md", "CMakeLists.txt", ".ci/run"}) {
    if (EndsWith(path, suffix)) return true;
  }
  return false;
}

std::vector<std::string> Violations(const std::string& path, const std::string& text) {
  std::vector<std::string> found;
  std::istringstream lines(text);
  std::string line;
  int number = 0;
  const auto report = [&](const std::string& what) {
    found.push_back(path + ":" + std::to_string(number) + ": " + what);
  };
  while (std::getline(lines, line)) {
    ++number;
    for (const std::string& mark : UnfinishedMarks()) {
      if (line.find(mark) != std::string::npos) report("unfinished: " + mark);
    }
    std::string header;
    bool quoted = false;
    if (!IsCode(path) || !ParseInclude(line, &header, &quoted)) continue;
    const std::string fault = IncludeFault(path, header, quoted);
    if (!fault.empty()) report(header + ": " + fault);
  }
  const bool generated = EndsWith(path, ".inc");
  if (number > kMaxLines && !generated && !EndsWith(path, ".md")) {
    report(std::to_string(number) + " lines; at most " + std::to_string(kMaxLines));
  }
  return found;
}

}  // namespace qlora::layout
