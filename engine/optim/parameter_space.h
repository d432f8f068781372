// The trained parameters as one flat space: each begins at a multiple of 256 elements, the gap
// behind it is zero. Optimizer states, gradients and checkpoints are ranges of this space.

#ifndef QLORA_ENGINE_OPTIM_PARAMETER_SPACE_H_
#define QLORA_ENGINE_OPTIM_PARAMETER_SPACE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops/adamw.h"
#include "kernels/tensor.h"

namespace qlora::engine {

struct Parameter {
  std::string name;  // as in checkpoints: a weight's tensor name, or PEFT's adapter key
  int64_t rows = 0, cols = 0;
  int64_t offset = 0;  // elements; a multiple of kParameterBlock
  float weight_decay = 0;
  int64_t course = 0;  // whose rate and schedule it follows
};

class ParameterSpace {
 public:
  // Returns the new parameter's index.
  int64_t Add(std::string name, int64_t rows, int64_t cols, float weight_decay, int64_t course = 0);

  const std::vector<Parameter>& parameters() const { return parameters_; }
  int64_t size() const { return size_; }        // elements with gaps
  int64_t trained() const { return trained_; }  // elements without

  // Of the parameter that element `element` of a flat view belongs to, or the gap behind it.
  int64_t IndexAt(int64_t element) const;
  // The rows of a parameter in a flat [1, size()] view.
  kernels::Tensor View(int64_t index, kernels::Tensor flat) const;
  // Runs of blocks with equal decay and of one course: the table that AdamW reads.
  std::vector<kernels::ParameterSegment> Segments() const;

 private:
  std::vector<Parameter> parameters_;
  int64_t size_ = 0;
  int64_t trained_ = 0;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_OPTIM_PARAMETER_SPACE_H_
