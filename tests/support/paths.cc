#include "tests/support/paths.h"

namespace qlora::tests {

std::string SourceDir() { return QLORA_SOURCE_DIR; }
std::string TestsDir() { return QLORA_TESTS_DIR; }
std::string EngineBinary() { return QLORA_BINARY; }
std::string IoShim() { return QLORA_IO_SHIM; }
std::string AllocationShim() { return QLORA_ALLOCATION_SHIM; }
std::string DemoDataBinary() { return QLORA_DEMO_DATA; }

}  // namespace qlora::tests
