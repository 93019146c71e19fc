#if defined(LLMC_EMULATED_ISAS)
#include "emulator/amx.h"
#endif
#define LLMC_ISA amx
#define LLMC_KERNELS kAmxKernels
#include "cpu/isa.inc"
