# Files that are compiled for one instruction set carry its name as a suffix: gemm_avx512.cc and so on.
# Everything else stays at the x86-64 baseline, so that the binary starts anywhere.
file(GLOB_RECURSE avx2_sources CONFIGURE_DEPENDS *_avx2.cc)
file(GLOB_RECURSE avx512_sources CONFIGURE_DEPENDS *_avx512.cc)
file(GLOB_RECURSE avx512_bf16_sources CONFIGURE_DEPENDS *_avx512_bf16.cc)
set(avx2_flags -mavx2 -mfma -mf16c)
set(avx512_flags ${avx2_flags} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
set_source_files_properties(${avx2_sources} PROPERTIES COMPILE_OPTIONS "${avx2_flags}")
set_source_files_properties(${avx512_sources} PROPERTIES COMPILE_OPTIONS "${avx512_flags}")
set_source_files_properties(${avx512_bf16_sources} PROPERTIES
  COMPILE_OPTIONS "${avx512_flags};-mavx512bf16")
