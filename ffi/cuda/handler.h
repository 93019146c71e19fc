// From a checked call to a launch: streams, element types, errors. Compiled by the host's compiler.
//
// No handler allocates memory or waits, and of the device it asks only what it is, so that XLA may
// record its launches in a CUDA graph. Scratch memory is a result of its own, named so.
#pragma once

#include <cstring>
#include <exception>
#include <string>

#include "common/buffer.h"
#include "cuda/kernels.h"

namespace llmc {

using cuda::Status;
using cuda::Stream;
using cuda::Type;

#ifdef LLMC_EMULATED
// XLA's CPU has no streams; its thread pool stands in and is not used.
using StreamContext = ffi::ThreadPool;
using StreamArgument = ffi::ThreadPool;
inline Stream ToStream(StreamArgument&) { return nullptr; }
#else
using StreamContext = ffi::PlatformStream<void*>;
using StreamArgument = void*;
inline Stream ToStream(StreamArgument stream) { return stream; }
#endif

#define LLMC_CUDA_HANDLER(symbol, function, binding)                          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, function, binding,                    \
                                {ffi::Traits::kCmdBufferCompatible})

// Starts the binding of a handler whose first argument is a StreamArgument.
inline auto BindStream() { return ffi::Ffi::Bind().Ctx<StreamContext>(); }

inline Type TypeOf(const Any& buffer) {
  switch (buffer.element_type()) {
    case ffi::BF16:
      return Type::kBF16;
    case ffi::F16:
      return Type::kF16;
    default:
      return Type::kF32;
  }
}

// The memory of a result that the kernel must write whole. The emulator sees that it does.
template <typename Buffer>
auto* Out(ffi::Result<Buffer>& buffer) {
#ifdef LLMC_EMULATED
  std::memset(buffer->untyped_data(), 0xff, buffer->size_bytes());
#endif
  if constexpr (std::is_same_v<Buffer, Any>)
    return buffer->untyped_data();
  else
    return buffer->typed_data();
}

// The memory of a result that XLA put in the place of `argument`.
template <typename Buffer, typename Argument>
auto* InPlace(Checker& check, const char* name, ffi::Result<Buffer>& buffer,
              const Argument& argument) {
  check.Require(buffer->untyped_data() == argument.untyped_data(),
                std::string(name) + " is not written in place");
  if constexpr (std::is_same_v<Buffer, Any>)
    return buffer->untyped_data();
  else
    return buffer->typed_data();
}

// launch(), a Status, if the call is in order; what is wrong becomes an error of the computation.
template <typename Body>
ffi::Error Run(const Checker& check, const Body& launch) {
  if (!check.ok()) return check.error();
  try {
    Status status = launch();
    if (status.ok()) return ffi::Error::Success();
    return ffi::Error(ffi::ErrorCode::kInternal, check.op() + ": " + status.error);
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, check.op() + ": " + error.what());
  }
}

}  // namespace llmc
