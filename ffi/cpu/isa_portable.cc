#define LLMC_ISA portable
#define LLMC_KERNELS kPortableKernels
#include "cpu/isa.inc"
