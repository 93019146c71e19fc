// What the handlers of all platforms share: buffer aliases, shape and type checks.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace llmc {

namespace ffi = xla::ffi;

using F32 = ffi::Buffer<ffi::F32>;
using F32Out = ffi::Result<F32>;
using S32 = ffi::Buffer<ffi::S32>;
using Any = ffi::AnyBuffer;  // float32 or bfloat16
using AnyOut = ffi::Result<Any>;

inline std::string ShapeString(ffi::Span<const int64_t> shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
  return text + ")";
}

inline std::string TypeString(ffi::DataType type) {
  switch (type) {
    case ffi::F32:
      return "float32";
    case ffi::BF16:
      return "bfloat16";
    case ffi::F16:
      return "float16";
    case ffi::F64:
      return "float64";
    default:
      return "XLA type " + std::to_string(static_cast<int>(type));
  }
}

// Checks the buffers of one call of `op` and keeps the first thing that is wrong with them.
class Checker {
 public:
  explicit Checker(const char* op) : op_(op) {}

  // Size of dimension i of a buffer of `rank` dimensions, none of them 0; 0 after an error.
  template <typename Buffer>
  int64_t Size(const char* name, const Buffer& buffer, size_t rank, size_t i) {
    auto shape = buffer.dimensions();
    if (shape.size() == rank && shape[i] > 0) return shape[i];
    Fail(std::string(name) + " is " + ShapeString(shape) + ", expected " + std::to_string(rank) +
         " dimensions, none of them 0");
    return 0;
  }

  template <typename Buffer>
  void Shape(const char* name, const Buffer& buffer, std::initializer_list<int64_t> expected) {
    auto shape = buffer.dimensions();
    ffi::Span<const int64_t> wanted(expected.begin(), expected.size());
    bool same = shape.size() == wanted.size();
    for (size_t i = 0; same && i < wanted.size(); ++i) same = shape[i] == wanted[i];
    if (!same)
      Fail(std::string(name) + " is " + ShapeString(shape) + ", expected " + ShapeString(wanted));
  }

  // That `buffer` is one of the types float32, bfloat16.
  void FloatType(const char* name, const Any& buffer) {
    auto type = buffer.element_type();
    if (type != ffi::F32 && type != ffi::BF16)
      Fail(std::string(name) + " is " + TypeString(type) + ", expected float32 or bfloat16");
  }

  void SameType(const char* name, const Any& buffer, const Any& other) {
    if (buffer.element_type() != other.element_type())
      Fail(std::string(name) + " is " + TypeString(buffer.element_type()) + ", expected " +
           TypeString(other.element_type()));
  }

  // That a buffer has this shape and the type of `other`.
  void Like(const char* name, const Any& buffer, const Any& other,
            std::initializer_list<int64_t> expected) {
    Shape(name, buffer, expected);
    SameType(name, buffer, other);
  }

  void Require(bool condition, const std::string& otherwise) {
    if (!condition) Fail(otherwise);
  }

  void Fail(const std::string& message) {
    if (!message_) message_ = std::string(op_) + ": " + message;
  }

  bool ok() const { return !message_; }
  std::string op() const { return op_; }
  ffi::Error error() const {
    return ffi::Error(ffi::ErrorCode::kInvalidArgument, message_.value_or(""));
  }

 private:
  const char* op_;
  std::optional<std::string> message_;
};

}  // namespace llmc
