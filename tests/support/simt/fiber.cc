#include "tests/support/simt/fiber.h"

#include <sys/mman.h>

#include <cstdlib>

#if !defined(__x86_64__)
#error "the SIMT executor's fibers are written for x86-64"
#endif

extern "C" void qlora_switch_stacks(void** save, void* load);
asm(R"(
.text
.globl qlora_switch_stacks
.type qlora_switch_stacks, @function
qlora_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size qlora_switch_stacks, .-qlora_switch_stacks
)");

namespace qlora::simt {
namespace {

constexpr int64_t kGuardBytes = 4096;

}  // namespace

Fiber::~Fiber() {
  if (stack_ != nullptr) munmap(stack_, kStackBytes + kGuardBytes);
}

void Fiber::Make(void (*main)()) {
  if (stack_ == nullptr) {
    void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) std::abort();
    stack_ = static_cast<uint8_t*>(memory);
  }
  // As a call would leave it: `ret` takes `main`, and the stack is then 8 short of a multiple of
  // 16.
  void** top = reinterpret_cast<void**>(stack_ + kGuardBytes + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
}

void SwitchFiber(Fiber* from, Fiber* to) {
  qlora_switch_stacks(&from->stack_pointer_, to->stack_pointer_);
}

}  // namespace qlora::simt
