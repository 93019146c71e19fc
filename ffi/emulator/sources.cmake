# LLMC_EMULATED_KERNELS: the CUDA kernels compiled for the host, on the emulator. Include after
# cuda/sources.cmake. Targets that use them define LLMC_EMULATED.
set(LLMC_EMULATED_KERNELS ${LLMC_CUDA_KERNELS} "${CMAKE_CURRENT_LIST_DIR}/machine.cc")
set_source_files_properties(${LLMC_CUDA_KERNELS} PROPERTIES
  LANGUAGE CXX COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas")
