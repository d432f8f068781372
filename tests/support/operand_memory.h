// OperandMemory: owner of the host image of one op's operands, from which a run on any device
// starts.
//
// Each operand lies in a block of its own between two guards. Guards, the gaps between the rows of
// a pitched view, rows that nothing fills, and outputs before the run hold *poison*: NaNs of random
// payload in floating-point operands, random bits in others. An op that reads what it must not read
// yields NaN; one that writes where it must not changes a byte.

#ifndef QLORA_TESTS_SUPPORT_OPERAND_MEMORY_H_
#define QLORA_TESTS_SUPPORT_OPERAND_MEMORY_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/tensor.h"
#include "tests/support/counted_random.h"

namespace qlora::kernels::optest {

class OperandMemory {
 public:
  // Guards on each side of an operand: a cache line, the widest store of any instruction set.
  static constexpr int64_t kGuardBytes = 64;

  // Where `pitched`, views get row gaps and begin at addresses that are aligned to nothing but
  // their element.
  OperandMemory(uint64_t seed, bool pitched) : random_(seed), pitched_(pitched) {}

  CountedRandom& random() { return random_; }
  bool pitched() const { return pitched_; }

  // A view full of poison: with gaps between rows where the memory is pitched, or always without.
  Tensor New(DType dtype, int64_t rows, int64_t cols);
  Tensor NewContiguous(DType dtype, int64_t rows, int64_t cols);
  Tensor NewRow(DType dtype, int64_t n) { return NewContiguous(dtype, 1, n); }
  Tensor NewI32(int32_t value);
  Tensor NewF32(float value);
  Tensor NewF64(double value);

  // The blocks one behind the other: what is copied to a device and back.
  int64_t image_bytes() const { return image_bytes_; }
  std::vector<uint8_t> Image() const;
  // Where an address of a block lies in the image; -1 for an address of no block.
  int64_t OffsetOf(const void* address) const;

 private:
  struct Block {
    std::unique_ptr<uint8_t[]> storage;
    uint8_t* data;  // aligned to a cache line
    int64_t bytes;
    int64_t offset;  // in the image
  };
  Tensor Add(DType dtype, int64_t rows, int64_t cols, int64_t pitch, int64_t skip);

  CountedRandom random_;
  const bool pitched_;
  std::vector<Block> blocks_;
  int64_t image_bytes_ = 0;
};

// Poison of an element type in `bytes` bytes, a multiple of the element's size.
void FillPoison(CountedRandom& random, DType dtype, void* data, int64_t bytes);

// Fill the first `rows` rows of a view (all of them where negative) with numbers rounded to its
// type.
void FillNormal(CountedRandom& random, const Tensor& t, double deviation, int64_t rows = -1);
// Integers of [low, high).
void FillIntegers(CountedRandom& random, const Tensor& t, int64_t low, int64_t high,
                  int64_t rows = -1);
void FillValue(const Tensor& t, double value, int64_t rows = -1);

// One element, to and from double; the number is rounded to the type to nearest even.
double Get(const ConstTensor& t, int64_t row, int64_t column);
void Put(const Tensor& t, int64_t row, int64_t column, double value);

}  // namespace qlora::kernels::optest

#endif  // QLORA_TESTS_SUPPORT_OPERAND_MEMORY_H_
