// The source tree keeps its own rules; and the checker finds what breaks them.

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/layout/layout_rules.h"
#include "tests/support/paths.h"

namespace qlora::layout {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// The folders that hold the project; what else lies there (build trees, outputs) is not it.
constexpr const char* kFolders[] = {"quant", "proto", "kernels",     "engine", "tools",
                                    "tests", "bench", "third_party", ".ci"};

std::string Read(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

TEST(Layout, TheTreeKeepsItsRules) {
  const std::filesystem::path root = tests::SourceDir();
  int checked = 0;
  const auto check = [&](const std::filesystem::path& file) {
    const std::string path = std::filesystem::relative(file, root).generic_string();
    if (!IsChecked(path)) return;
    ++checked;
    for (const std::string& violation : Violations(path, Read(file))) ADD_FAILURE() << violation;
  };
  for (const char* folder : kFolders) {
    if (!std::filesystem::exists(root / folder)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      if (entry.is_regular_file()) check(entry.path());
    }
  }
  for (const char* file : {"CMakeLists.txt", "README.md"}) {
    if (std::filesystem::exists(root / file)) check(root / file);
  }
  EXPECT_GT(checked, 50) << "is " << root << " the source tree?";
}

TEST(LayoutRules, LayersPointOneWay) {
  EXPECT_THAT(Violations("kernels/a.h", "#include \"quant/spec.h\"\n#include <vector>\n"),
              IsEmpty());
  EXPECT_THAT(Violations("engine/io/a.cc", "#include \"proto/job.pb.h\"\n"), IsEmpty());
  EXPECT_THAT(Violations("tests/quant/a_test.cc", "#include \"tests/support/b.h\"\n"), IsEmpty());
  EXPECT_THAT(Violations("quant/a.h", "\n#include \"kernels/tensor.h\"\n"),
              ElementsAre("quant/a.h:2: kernels/tensor.h: quant/ must not see kernels/"));
  for (const char* bad :
       {"kernels/a.cc|engine/plan/plan.h", "kernels/a.cc|proto/job.h", "proto/a.cc|quant/spec.h",
        "engine/a.cc|tools/flags.h", "engine/a.cc|tests/support/b.h",
        "quant/a.cc|nlohmann/json.hpp", "kernels/a.cc|google/protobuf/message.h"}) {
    const std::string text = bad;
    const size_t bar = text.find('|');
    EXPECT_THAT(
        Violations(text.substr(0, bar), "#include \"" + text.substr(bar + 1) + "\"\n").size(), 1u)
        << bad;
  }
}

TEST(LayoutRules, IncludesNameTheirLayer) {
  EXPECT_THAT(Violations("engine/a.cc", "#include \"../kernels/tensor.h\"\n"),
              ElementsAre(HasSubstr("relative path")));
  EXPECT_THAT(Violations("tests/a.cc", "#  include <../x.h>\n"),
              ElementsAre(HasSubstr("relative path")));
  EXPECT_THAT(Violations("engine/a.cc", "#include \"plan.h\"\n"),
              ElementsAre(HasSubstr("path from the layer")));
  EXPECT_THAT(Violations("engine/a.cc", "#include <kernels/tensor.h>\n"),
              ElementsAre(HasSubstr("in quotes")));
}

TEST(LayoutRules, AcceleratorHeadersHaveTheirPlace) {
  for (const char* header : {"cuda_runtime.h", "cuda.h", "cuda_bf16.h", "cublasLt.h", "nccl.h",
                             "cooperative_groups.h", "mma.h", "cudnn.h", "cuda/std/array"}) {
    const std::string include = std::string("#include <") + header + ">\n";
    EXPECT_THAT(Violations("kernels/cuda/linear.cu", include), IsEmpty()) << header;
    EXPECT_THAT(Violations("engine/comm/nccl.cc", include), IsEmpty()) << header;
    for (const char* path : {"kernels/cpu/linear.cc", "engine/comm/local.cc", "tests/kernels/a.cc",
                             "bench/op_bench.cc", "tools/a.cc"}) {
      EXPECT_THAT(Violations(path, include), ElementsAre(HasSubstr("belong in"))) << path << header;
    }
  }
  EXPECT_THAT(Violations("tests/kernels/a.cc", "#include <cmath>\n#include <cstdint>\n"),
              IsEmpty());
}

TEST(LayoutRules, ProtobufStaysOutOfTheLowLayers) {
  for (const char* path : {"quant/a.cc", "kernels/a.cc"}) {
    EXPECT_THAT(Violations(path, "#include \"proto/job.pb.h\"\n").size(), 1u);
    EXPECT_THAT(Violations(path, "#include <job.pb.h>\n").size(), 1u);
  }
}

TEST(LayoutRules, FilesAreShort) {
  std::string text;
  for (int i = 0; i < kMaxLines; ++i) text += "int x;\n";
  EXPECT_THAT(Violations("engine/a.cc", text), IsEmpty());
  text += "int y;\n";
  EXPECT_THAT(Violations("engine/a.cc", text), ElementsAre(HasSubstr("601 lines; at most 600")));
  EXPECT_THAT(Violations("engine/text/table.inc", text), IsEmpty());
}

TEST(LayoutRules, NothingIsLeftUnfinished) {
  EXPECT_THAT(Violations("engine/a.cc", std::string("// TO") + "DO: later\n").size(), 1u);
  EXPECT_THAT(Violations("tools/a.sh", std::string("# FIX") + "ME\n").size(), 1u);
  EXPECT_THAT(Violations("engine/a.cc", "int todo_list;\n"), IsEmpty());
}

TEST(LayoutRules, DataIsNotChecked) {
  EXPECT_FALSE(IsChecked("tests/golden/text/cases.json"));
  EXPECT_FALSE(IsChecked("tests/golden/io/a.bin"));
  EXPECT_TRUE(IsChecked("tests/golden/io/make.py"));
  EXPECT_TRUE(IsChecked("kernels/cuda/linear.cu"));
  EXPECT_TRUE(IsChecked("engine/CMakeLists.txt"));
}

}  // namespace
}  // namespace qlora::layout
