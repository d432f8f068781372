// The program where the system refuses memory that was planned, or beside it: it ends saying so,
// never by a signal, and loses nothing.
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "proto/exit_codes.h"
#include "tests/support/fault_scale.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr int64_t kMiB = 1 << 20;
// Of address space: the libraries alone; the whole run.
constexpr int64_t kSmallest = 24, kEnough = 160;

class OutOfMemory : public Workplace {
 protected:
  OutOfMemory() {
    job_ =
        "mode: QLORA training { max_steps: 6 gradient_accumulation_steps: 1 save_steps: 1 "
        "logging_steps: 1 } lora { r: 4 } num_threads: 2\n";
  }
  CommandResult Train(int64_t address_space) const {
    WriteJob();
    return RunEngine({"train", Path("job.textproto")}, {.address_space = address_space});
  }
  std::string Result() const { return Read("out/adapter_model.safetensors"); }
};

TEST_F(OutOfMemory, WhereverItComesNothingIsLost) {
  if (kSanitized) GTEST_SKIP() << "sanitizers need address space of their own";
  ASSERT_EQ(Train(0).exit_code, 0);
  const std::string undisturbed = Result();
  int refused = 0, done = 0;
  const int sizes = Times(18, 200);
  for (int i = 0; i < sizes; ++i) {
    const int64_t limit = (kSmallest + (kEnough - kSmallest) * i / (sizes - 1)) * kMiB;
    SCOPED_TRACE(absl::StrCat(limit / kMiB, " MiB"));
    fs::remove_all(Path("out"));
    const CommandResult result = Train(limit);
    ASSERT_EQ(result.signal, 0) << result.err;
    if (result.exit_code == 0) {
      ++done;
    } else {
      ++refused;
      EXPECT_EQ(result.exit_code, proto::kExitDoesNotFit) << result.err;
      EXPECT_THAT(result.err, HasSubstr("error: "));
      ASSERT_EQ(Train(0).exit_code, 0);
    }
    EXPECT_TRUE(Result() == undisturbed);
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(done, 0);
}

}  // namespace
}  // namespace qlora::tests
