#define LLMC_ISA amx
#define LLMC_KERNELS kAmxKernels
#include "cpu/isa.inc"
