#define LLMC_ISA avx2
#define LLMC_KERNELS kAvx2Kernels
#include "cpu/isa.inc"
