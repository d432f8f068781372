#include "proto/errors.h"

#include <cerrno>
#include <csignal>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"

namespace qlora::proto {
namespace {

using ::testing::HasSubstr;

TEST(ErrorsTest, EachConstructorHasItsExitCode) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeOf(BadJobError("m")), 64);
  EXPECT_EQ(ExitCodeOf(BadDataError("m")), 65);
  EXPECT_EQ(ExitCodeOf(MissingFileError("m")), 65);
  EXPECT_EQ(ExitCodeOf(NoDeviceError("m")), 69);
  EXPECT_EQ(ExitCodeOf(DoesNotFitError("m")), 71);
  EXPECT_EQ(ExitCodeOf(IoError("m")), 74);
  EXPECT_EQ(ExitCodeOf(PeerLostError("m")), 75);
  EXPECT_EQ(ExitCodeOf(NumbersBadError("m")), 76);
  EXPECT_EQ(ExitCodeOf(GateMissedError("m")), 79);
  EXPECT_EQ(ExitCodeOf(StoppedError(SIGINT, "m")), 130);
  EXPECT_EQ(ExitCodeOf(StoppedError(SIGTERM, "m")), 143);
}

TEST(ErrorsTest, CanonicalCodesAreThoseOfTheReliabilityTable) {
  EXPECT_EQ(BadJobError("m").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(BadDataError("m").code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(DoesNotFitError("m").code(), absl::StatusCode::kResourceExhausted);
}

TEST(ErrorsTest, StatusWithoutPayloadMapsByItsCode) {
  EXPECT_EQ(ExitCodeOf(absl::InvalidArgumentError("m")), 64);
  EXPECT_EQ(ExitCodeOf(absl::DataLossError("m")), 65);
  EXPECT_EQ(ExitCodeOf(absl::NotFoundError("m")), 65);
  EXPECT_EQ(ExitCodeOf(absl::FailedPreconditionError("m")), 65);
  EXPECT_EQ(ExitCodeOf(absl::OutOfRangeError("m")), 65);
  EXPECT_EQ(ExitCodeOf(absl::AlreadyExistsError("m")), 65);
  EXPECT_EQ(ExitCodeOf(absl::UnimplementedError("m")), 69);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("m")), 69);
  EXPECT_EQ(ExitCodeOf(absl::InternalError("m")), 70);
  EXPECT_EQ(ExitCodeOf(absl::ResourceExhaustedError("m")), 71);
  EXPECT_EQ(ExitCodeOf(absl::UnknownError("m")), 74);
  EXPECT_EQ(ExitCodeOf(absl::PermissionDeniedError("m")), 74);
  EXPECT_EQ(ExitCodeOf(absl::DeadlineExceededError("m")), 75);
  EXPECT_EQ(ExitCodeOf(absl::CancelledError("m")), 130);
}

TEST(ErrorsTest, FullDiskIsIoAlthoughItsCodeIsResourceExhausted) {
  const absl::Status status = IoError("out/adapter.tmp: write", ENOSPC);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ExitCodeOf(status), 74);
  EXPECT_THAT(std::string(status.message()), HasSubstr("out/adapter.tmp: write"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("No space left"));
}

TEST(ErrorsTest, AnnotateKeepsCodeAndPayload) {
  const absl::Status status = Annotate(IoError("write", ENOSPC), "checkpoint 12");
  EXPECT_EQ(status.message().substr(0, 15), "checkpoint 12: ");
  EXPECT_EQ(ExitCodeOf(status), 74);
  EXPECT_TRUE(Annotate(absl::OkStatus(), "x").ok());
}

}  // namespace
}  // namespace qlora::proto
