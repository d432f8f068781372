#include "engine/optim/parameter_space.h"

#include <algorithm>
#include <utility>

namespace qlora::engine {

int64_t ParameterSpace::Add(std::string name, int64_t rows, int64_t cols, float weight_decay,
                            int64_t course) {
  parameters_.push_back({std::move(name), rows, cols, size_, weight_decay, course});
  const int64_t blocks = (rows * cols + kernels::kParameterBlock - 1) / kernels::kParameterBlock;
  size_ += blocks * kernels::kParameterBlock;
  trained_ += rows * cols;
  return int64_t(parameters_.size()) - 1;
}

int64_t ParameterSpace::IndexAt(int64_t element) const {
  const auto behind =
      std::upper_bound(parameters_.begin(), parameters_.end(), element,
                       [](int64_t value, const Parameter& p) { return value < p.offset; });
  return behind - parameters_.begin() - 1;
}

kernels::Tensor ParameterSpace::View(int64_t index, kernels::Tensor flat) const {
  const Parameter& p = parameters_[index];
  return kernels::Reshape(kernels::Slice(flat, 0, 1, p.offset, p.rows * p.cols), p.rows, p.cols);
}

std::vector<kernels::ParameterSegment> ParameterSpace::Segments() const {
  std::vector<kernels::ParameterSegment> segments;
  int64_t course = -1;
  for (const Parameter& p : parameters_) {
    if (p.course == course && segments.back().weight_decay == p.weight_decay) continue;
    course = p.course;
    segments.push_back({.first_block = int32_t(p.offset / kernels::kParameterBlock),
                        .rate_factor = 1.0f,
                        .weight_decay = p.weight_decay,
                        .adapter = int32_t(course)});
  }
  return segments;
}

}  // namespace qlora::engine
