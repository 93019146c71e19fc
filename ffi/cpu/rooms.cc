// Results that nobody reads: memory for XLA to lay a step's temporaries in (llmc_jax/training/
// rooms.py). What is in it stays as it is.
#include "cpu/handler.h"

namespace llmc {
namespace {

ffi::Error Uninitialized(ffi::RemainingArgs /*when*/, ffi::RemainingRets results) {
  for (size_t i = 0; i < results.size(); ++i) {
    auto result = results.get<ffi::AnyBuffer>(i);
    if (!result.has_value()) return result.error();
    UseHugePages((*result)->untyped_data(), (*result)->size_bytes());
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_uninitialized, Uninitialized,
                              ffi::Ffi::Bind()
                                  .RemainingArgs()    // what is computed before
                                  .RemainingRets());  // arrays of any shape and type

}  // namespace llmc
