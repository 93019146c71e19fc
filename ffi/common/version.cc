// The FFI API this library was built with, for llmc_jax/ffi.py to check before it registers
// anything: jaxlib accepts handlers of its own version and of older ones.
#include "xla/ffi/api/c_api.h"

extern "C" int llmc_ffi_api_version() { return XLA_FFI_API_MINOR; }
