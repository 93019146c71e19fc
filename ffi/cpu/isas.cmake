# LLMC_CPU_KERNELS: the kernels for every instruction set this compiler can target, each file with
# its own flags. Used by the library and by the driver in tests/.
set(LLMC_CPU_KERNELS isa.cc isa_portable.cc memory.cc scratch.cc)
if(NOT DEFINED LLMC_OPTIMIZE)
  set(LLMC_OPTIMIZE -O3)  # tests/ has another where it builds with sanitizers
endif()
set(LLMC_FLAGS ${LLMC_OPTIMIZE} -ffp-contract=fast -fno-math-errno -fno-trapping-math
  # beside a busy hyperthread, the products' loops took 15 % longer where the linker put them askew
  -falign-loops=32
  # g++ 12 warns about its own headers (GCC bug 105593)
  -Wno-uninitialized -Wno-maybe-uninitialized)
set_source_files_properties("${CMAKE_CURRENT_LIST_DIR}/isa_portable.cc" PROPERTIES
  COMPILE_OPTIONS "${LLMC_FLAGS}")

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(AVX2 ${LLMC_FLAGS} -mavx2 -mfma)
  set(AVX512 ${AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  set(AVX512BF16 ${AVX512} -mavx512bf16)
  set(AMX ${AVX512BF16} -mamx-tile -mamx-bf16)
  foreach(isa AVX2 AVX512 AVX512BF16 AMX)
    string(TOLOWER ${isa} name)
    list(APPEND LLMC_CPU_KERNELS isa_${name}.cc)
    set_source_files_properties("${CMAKE_CURRENT_LIST_DIR}/isa_${name}.cc" PROPERTIES
      COMPILE_OPTIONS "${${isa}}")
  endforeach()
endif()
list(TRANSFORM LLMC_CPU_KERNELS PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
