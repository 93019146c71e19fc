// What this library was built with and for, for llmc_jax/ffi.py to check before it registers
// anything.
#include "xla/ffi/api/c_api.h"

// jaxlib accepts handlers of its own version of the API and of older ones.
extern "C" int llmc_ffi_api_version() { return XLA_FFI_API_MINOR; }

// Raised, here and in llmc_jax/ffi.py, when a handler's inputs, results or attributes change.
extern "C" int llmc_interface() { return 5; }
