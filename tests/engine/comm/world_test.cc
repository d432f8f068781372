#include "engine/comm/world.h"

#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

absl::StatusOr<World> Find(const std::map<std::string, std::string>& environment,
                           const LaunchOptions& options = {}) {
  return FindWorld(options, [&](const char* name) -> const char* {
    const auto it = environment.find(name);
    return it == environment.end() ? nullptr : it->second.c_str();
  });
}

const std::map<std::string, std::string> kMpi = {{"OMPI_COMM_WORLD_RANK", "1"},
                                                 {"OMPI_COMM_WORLD_SIZE", "4"},
                                                 {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                                                 {"PMIX_NAMESPACE", "77"}};
const std::map<std::string, std::string> kSlurm = {
    {"SLURM_PROCID", "5"},     {"SLURM_STEP_NUM_TASKS", "8"},
    {"SLURM_STEP_ID", "0"},    {"SLURM_STEP_NUM_NODES", "2"},
    {"SLURM_JOB_ID", "40012"}, {"SLURM_STEP_NODELIST", "a[3-4]"}};

TEST(World, IsOneProcessWithoutALauncher) {
  const auto world = Find({});
  ASSERT_TRUE(world.ok());
  EXPECT_EQ(world->rank, 0);
  EXPECT_EQ(world->size, 1);
}

TEST(World, OfOpenMpiOnOneMachine) {
  const auto world = Find(kMpi);
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_EQ(world->rank, 1);
  EXPECT_EQ(world->size, 4);
  EXPECT_THAT(world->rendezvous, StartsWith("@"));
  EXPECT_THAT(world->rendezvous, HasSubstr("77"));
  EXPECT_EQ(world->launch, "77");
  EXPECT_TRUE(world->launched);
}

TEST(World, OfOpenMpiOnSeveralMachinesWantsAPlaceToMeet) {
  auto environment = kMpi;
  environment["OMPI_COMM_WORLD_LOCAL_SIZE"] = "2";
  const auto refused = Find(environment);
  EXPECT_EQ(proto::ExitCodeOf(refused.status()), proto::kExitBadJob);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--rendezvous HOST:PORT"));
  const auto world = Find(environment, {.rendezvous = "head:2000"});
  ASSERT_TRUE(world.ok());
  EXPECT_EQ(world->rendezvous, "head:2000");
}

TEST(World, OfSlurm) {
  const auto world = Find(kSlurm);
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_EQ(world->rank, 5);
  EXPECT_EQ(world->size, 8);
  EXPECT_EQ(world->rendezvous, "a3:20012");
  EXPECT_EQ(world->launch, "40012.0");
  auto one_node = kSlurm;
  one_node["SLURM_STEP_NUM_NODES"] = "1";
  EXPECT_THAT(Find(one_node)->rendezvous, StartsWith("@"));
}

// Of one allocation, at the same time.
TEST(World, StepsOfASlurmJobDoNotMeet) {
  for (const char* machines : {"1", "2"}) {
    auto environment = kSlurm;
    environment["SLURM_STEP_NUM_NODES"] = machines;
    const auto first = Find(environment);
    environment["SLURM_STEP_ID"] = "1";
    const auto second = Find(environment);
    ASSERT_TRUE(first.ok() && second.ok());
    EXPECT_NE(first->rendezvous, second->rendezvous);
    EXPECT_NE(first->launch, second->launch);
  }
}

// A step that Slurm numbers from the end, as it does an interactive one.
TEST(World, OfSlurmsInteractiveStep) {
  auto environment = kSlurm;
  environment["SLURM_STEP_ID"] = "4294967290";
  EXPECT_EQ(Find(environment)->rendezvous, "a3:20012");
}

// sbatch sets the number of tasks and rank 0 for the script itself.
TEST(World, OfSlurmsBatchScriptIsOneProcess) {
  auto environment = kSlurm;
  environment.erase("SLURM_STEP_ID");
  EXPECT_EQ(Find(environment)->size, 1);
}

TEST(World, ByHandGoesBeforeTheEnvironment) {
  const auto world = Find(kMpi, {.rank = 0, .world = 2, .rendezvous = "localhost:1234"});
  ASSERT_TRUE(world.ok());
  EXPECT_EQ(world->size, 2);
  EXPECT_EQ(world->rendezvous, "localhost:1234");
  EXPECT_EQ(world->launch, "");
  EXPECT_FALSE(world->launched);
}

TEST(World, RefusesNumbersThatMakeNoSense) {
  EXPECT_FALSE(Find({}, {.rank = 0}).ok());
  EXPECT_FALSE(Find({}, {.rank = 2, .world = 2, .rendezvous = "a:1"}).ok());
  EXPECT_FALSE(Find({}, {.rank = -1, .world = 2, .rendezvous = "a:1"}).ok());
  auto environment = kMpi;
  environment["OMPI_COMM_WORLD_RANK"] = "one";
  EXPECT_FALSE(Find(environment).ok());
}

TEST(World, FirstHostOfSlurmsLists) {
  EXPECT_EQ(FirstHost("gpu[003-007,9],b1"), "gpu003");
  EXPECT_EQ(FirstHost("gpu[12]"), "gpu12");
  EXPECT_EQ(FirstHost("b1,gpu[003-007]"), "b1");
  EXPECT_EQ(FirstHost("single"), "single");
  EXPECT_EQ(FirstHost("rack[1-2]n[3-4],b1"), "rack1n3");
  EXPECT_EQ(FirstHost("n[1-2]-ib,b1"), "n1-ib");
  EXPECT_EQ(FirstHost("broken[12"), "");
  EXPECT_EQ(FirstHost(""), "");
}

}  // namespace
}  // namespace qlora::engine
