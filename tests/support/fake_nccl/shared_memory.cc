#include "tests/support/fake_nccl/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace qlora::fake_nccl {

SharedMemory* Map(const std::string& name) {
  const int fd = shm_open(name.c_str(), O_RDWR | O_CREAT, 0600);
  if (fd < 0) return nullptr;
  void* data = MAP_FAILED;
  if (ftruncate(fd, sizeof(SharedMemory)) == 0) {
    data = mmap(nullptr, sizeof(SharedMemory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  close(fd);
  return data == MAP_FAILED ? nullptr : static_cast<SharedMemory*>(data);
}

void Unlink(const std::string& name) { shm_unlink(name.c_str()); }

void Unmap(SharedMemory* memory) { munmap(memory, sizeof(SharedMemory)); }

}  // namespace qlora::fake_nccl
