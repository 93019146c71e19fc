// What the handlers of all platforms share: buffer aliases, the bfloat16 type, shape checks.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace llmc {

namespace ffi = xla::ffi;

using F32 = ffi::Buffer<ffi::F32>;
using F32Out = ffi::Result<F32>;
using S32 = ffi::Buffer<ffi::S32>;
using Any = ffi::AnyBuffer;  // float32 or bfloat16
using AnyOut = ffi::Result<Any>;

// bfloat16 as XLA stores it: the upper half of a float.
struct BF16 {
  uint16_t bits;

  static BF16 From(float value) {
    uint32_t word;
    __builtin_memcpy(&word, &value, sizeof word);
    if ((word & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>((word >> 16) | 0x40)};
    word += 0x7fff + ((word >> 16) & 1);  // round to nearest, ties to even
    return {static_cast<uint16_t>(word >> 16)};
  }
};

inline float ToFloat(float value) { return value; }
inline float ToFloat(BF16 value) {
  uint32_t word = static_cast<uint32_t>(value.bits) << 16;
  float result;
  __builtin_memcpy(&result, &word, sizeof result);
  return result;
}
inline void Store(float value, float* out) { *out = value; }
inline void Store(float value, BF16* out) { *out = BF16::From(value); }

template <typename T>
const T* Data(const Any& buffer) {
  return static_cast<const T*>(buffer.untyped_data());
}
template <typename T>
T* Data(AnyOut& buffer) {
  return static_cast<T*>(buffer->untyped_data());
}

inline ffi::Error InvalidArgument(const std::string& message) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, message);
}

inline std::string ShapeString(ffi::Span<const int64_t> shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
  return text + ")";
}

// Success if `shape` is `expected`; else an error that names the op, the buffer and both shapes.
inline ffi::Error CheckShape(const char* op, const char* buffer, ffi::Span<const int64_t> shape,
                             std::initializer_list<int64_t> expected) {
  ffi::Span<const int64_t> wanted(expected.begin(), expected.size());
  bool same = shape.size() == wanted.size();
  for (size_t i = 0; same && i < wanted.size(); ++i) same = shape[i] == wanted[i];
  if (same) return ffi::Error::Success();
  return InvalidArgument(std::string(op) + ": " + buffer + " is " + ShapeString(shape) +
                         ", expected " + ShapeString(wanted));
}

// Calls body(T{}) with T the C++ type of `dtype`: float or BF16.
template <typename Body>
ffi::Error WithFloatType(const char* op, ffi::DataType dtype, Body&& body) {
  switch (dtype) {
    case ffi::F32:
      return body(float{});
    case ffi::BF16:
      return body(BF16{});
    default:
      return InvalidArgument(std::string(op) + ": takes float32 or bfloat16, not XLA type " +
                             std::to_string(static_cast<int>(dtype)));
  }
}

}  // namespace llmc

#define LLMC_RETURN_IF_ERROR(expression)                       \
  do {                                                         \
    ::xla::ffi::Error llmc_error = (expression);               \
    if (llmc_error.failure()) return llmc_error;               \
  } while (false)
