#if defined(LLMC_EMULATED_ISAS)
#include "emulator/bf16.h"
#endif
#define LLMC_ISA avx512bf16
#define LLMC_KERNELS kAvx512Bf16Kernels
#include "cpu/isa.inc"
