#define LLMC_ISA avx512
#define LLMC_KERNELS kAvx512Kernels
#include "cpu/isa.inc"
