// Where this checkout lies, and what was built of it. One file knows: all others compile the same
// wherever they lie, which a compiler cache repays.
#ifndef QLORA_TESTS_SUPPORT_PATHS_H_
#define QLORA_TESTS_SUPPORT_PATHS_H_

#include <string>

namespace qlora::tests {

std::string SourceDir();
std::string TestsDir();
std::string EngineBinary();    // qlora_engine
std::string IoShim();          // the library of tests/support/io_shim.cc
std::string AllocationShim();  // that of tests/support/allocation_shim.cc
std::string DemoDataBinary();  // make_demo_data

}  // namespace qlora::tests

#endif  // QLORA_TESTS_SUPPORT_PATHS_H_
