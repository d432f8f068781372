# Looks for a CUDA compiler, and enables the language where the CUDA backend is wanted and can be had.

set(QLORA_CUDA "AUTO" CACHE STRING "Build the CUDA backend: ON, OFF, or AUTO (where nvcc is found)")
# Real code for each architecture that is qualified for, PTX of the newest for what comes after.
set(QLORA_CUDA_ARCHITECTURES "80-real;86-real;89-real;90a-real;100-real;120" CACHE STRING
  "Architectures that the CUDA kernels are compiled for")

set(use_cuda ${QLORA_CUDA})
if(QLORA_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  if(NOT CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
  endif()
  check_language(CUDA)
  set(use_cuda ${CMAKE_CUDA_COMPILER})
endif()
if(use_cuda)
  set(CMAKE_CUDA_ARCHITECTURES ${QLORA_CUDA_ARCHITECTURES})
  enable_language(CUDA)
  # CMake 3.25 doesn't know that nvcc 12 and later has C++20.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  find_package(CUDAToolkit REQUIRED)
endif()

