// From a checked call to a kernel: threads, element types, exceptions.
#pragma once

#include <new>
#include <string>

#include "common/buffer.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"

namespace llmc {

template <typename T>
const T* In(const Any& buffer) {
  return static_cast<const T*>(buffer.untyped_data());
}
// The memory of a result, about to be written.
template <typename T>
T* Out(AnyOut& buffer) {
  UseHugePages(buffer->untyped_data(), buffer->size_bytes());
  return static_cast<T*>(buffer->untyped_data());
}
inline float* Out(F32Out& buffer) {
  UseHugePages(buffer->typed_data(), buffer->size_bytes());
  return buffer->typed_data();
}

// A tensor that may be left out (a gradient that stays in its factors, what is not kept): like
// `like` and of these sizes, or without rows, and then its memory is null.
template <typename... Sizes>
void LikeOrLeftOut(Checker& check, const char* name, const Any& buffer, const Any& like,
                   int64_t rows, Sizes... sizes) {
  const auto shape = buffer.dimensions();
  const bool left = shape.size() == 1 + sizeof...(sizes) && shape[0] == 0;
  check.Like(name, buffer, like, {left ? 0 : rows, sizes...});
}
template <typename T>
const T* InOrNull(const Any& buffer) {
  return buffer.element_count() ? In<T>(buffer) : nullptr;
}
template <typename T>
T* OutOrNull(AnyOut& buffer) {
  return buffer->element_count() ? Out<T>(buffer) : nullptr;
}

// Runs body(threads) if the call is in order; what it throws becomes an error, not a crash.
template <typename Body>
ffi::Error Run(const Checker& check, ffi::ThreadPool& pool, const Body& body) {
  if (!check.ok()) return check.error();
  try {
    PoolThreads threads(pool);
    body(threads);
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      std::string(check.op()) + ": no memory for a kernel's scratch");
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string(check.op()) + ": " + error.what());
  }
}

// Runs body(threads, T{}) with T the type of the activations `inp`.
template <typename Body>
ffi::Error RunOn(Checker& check, ffi::ThreadPool& pool, const Any& inp, const Body& body) {
  check.FloatType("inp", inp);
  return Run(check, pool, [&](Threads& threads) {
    if (inp.element_type() == ffi::F32)
      body(threads, float{});
    else
      body(threads, BF16{});
  });
}

// Runs body(threads, T{}, W{}) with T the type of the activations `inp` (anything of it will do)
// and W that of the weights, which are of type T or float32.
template <typename Body>
ffi::Error RunOn(Checker& check, ffi::ThreadPool& pool, ffi::DataType inp, const Any& weight,
                 const Body& body) {
  auto type = weight.element_type();
  check.Require(inp == ffi::F32 || inp == ffi::BF16,
                "inp is " + TypeString(inp) + ", expected float32 or bfloat16");
  check.Require(type == inp || type == ffi::F32,
                "weights are " + TypeString(type) + " and activations " + TypeString(inp) +
                    ", expected weights in float32 or the type of the activations");
  return Run(check, pool, [&](Threads& threads) {
    if (inp == ffi::F32)
      body(threads, float{}, float{});
    else if (type == ffi::F32)
      body(threads, BF16{}, float{});
    else
      body(threads, BF16{}, BF16{});
  });
}

}  // namespace llmc
