// A fiber: a stack of its own that the host thread can switch to and back from. x86-64 only; saves
// what the System V calling convention calls preserved.

#ifndef QLORA_TESTS_SUPPORT_SIMT_FIBER_H_
#define QLORA_TESTS_SUPPORT_SIMT_FIBER_H_

#include <cstdint>

namespace qlora::simt {

class Fiber {
 public:
  // Usable stack; a guard page lies below it.
  static constexpr int64_t kStackBytes = 128 * 1024;

  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber();

  // The next switch to it calls `main`, which must never return.
  void Make(void (*main)());
  void Reset() { stack_pointer_ = nullptr; }
  bool IsMade() const { return stack_pointer_ != nullptr; }

 private:
  friend void SwitchFiber(Fiber* from, Fiber* to);
  void* stack_pointer_ = nullptr;
  uint8_t* stack_ = nullptr;
};

// Stops here, in `from`, and goes on where `to` stopped.
void SwitchFiber(Fiber* from, Fiber* to);

}  // namespace qlora::simt

#endif  // QLORA_TESTS_SUPPORT_SIMT_FIBER_H_
