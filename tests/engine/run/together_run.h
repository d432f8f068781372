// Several adapters trained beside each other over one golden model, and each of them alone.
#ifndef QLORA_TESTS_ENGINE_RUN_TOGETHER_RUN_H_
#define QLORA_TESTS_ENGINE_RUN_TOGETHER_RUN_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/data/batcher.h"
#include "tests/engine/run/model_run.h"

namespace qlora::engine {

struct TogetherCase {
  std::string name;
  std::string model = "llama3_tied";
  proto::Mode::Value mode = proto::Mode::QLORA;
  kernels::DType compute = kernels::DType::kBf16;
  bool eight_bit_states = false;
  PagingLimits paging;
  int64_t groups = 1;  // that go through the model one after the other: member m in m % groups
};

// One customer: everything differs from the others'.
struct Customer {
  int r;
  std::vector<std::string> targets;
  float dropout;
  double learning_rate;
  int64_t steps;
  uint64_t seed;  // of data order and dropout
  Dataset data;
};
// Four: different ranks, targets, rates, seeds, data, numbers of steps.
std::vector<Customer> Customers();

// What an adapter leaves: compute copy, masters, moments; its loss, norm and skips, step by step.
struct Left {
  std::string states;
  std::vector<double> losses;
  std::vector<float> norms;
  std::vector<bool> skips;
  bool operator==(const Left&) const = default;
};

// Trains the customers at `members` in one run; adapter i of all customers starts from the same
// numbers whoever else is there. Where given, `poisoned` (of `members`) starts with NaN weights.
std::vector<Left> TrainMembers(const TogetherCase& c, const std::vector<Customer>& customers,
                               const std::vector<size_t>& members,
                               std::unique_ptr<kernels::Device> device, int64_t poisoned = -1);

}  // namespace qlora::engine

#endif  // QLORA_TESTS_ENGINE_RUN_TOGETHER_RUN_H_
