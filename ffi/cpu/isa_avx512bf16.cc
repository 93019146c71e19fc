#define LLMC_ISA avx512bf16
#define LLMC_KERNELS kAvx512Bf16Kernels
#include "cpu/isa.inc"
