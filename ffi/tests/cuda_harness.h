// What the driver of the emulated CUDA kernels is made of: buffers of exact size that begin as NaN,
// random numbers, and the comparison of what a kernel wrote with what it should have written.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "cuda/gpu.cuh"

namespace llmc::cuda::test {

// "Device memory": ends where its memory ends, so that AddressSanitizer sees any overrun.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : size_(size) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, size * sizeof(T))) throw std::bad_alloc();
    memory_.reset(static_cast<T*>(std::memset(memory, 0xff, size * sizeof(T))));
  }
  // Of random numbers, normal with deviation `scale`.
  Buffer(int64_t size, std::mt19937& random, float scale = 1) : Buffer(size) {
    std::normal_distribution<float> normal(0, scale);
    for (int64_t i = 0; i < size; ++i) (*this)[i] = FromFloat<T>(normal(random));
  }
  Buffer(const Buffer& other) : Buffer(other.size_) {
    std::memcpy(data(), other.data(), size_ * sizeof(T));
  }

  int64_t size() const { return size_; }
  T* data() { return memory_.get(); }
  const T* data() const { return memory_.get(); }
  T& operator[](int64_t i) { return memory_.get()[i]; }
  const T& operator[](int64_t i) const { return memory_.get()[i]; }
  double Value(int64_t i) const { return ToFloat((*this)[i]); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  int64_t size_;
  std::unique_ptr<T, Free> memory_;
};

template <typename T>
constexpr Type kType = Type::kF32;
template <>
constexpr Type kType<bf16> = Type::kBF16;
template <>
constexpr Type kType<f16> = Type::kF16;

// The distance between 1 and the next number of type T.
template <typename T>
constexpr double kEpsilon = 0x1p-23;
template <>
constexpr double kEpsilon<bf16> = 0x1p-7;
template <>
constexpr double kEpsilon<f16> = 0x1p-10;

inline int failures = 0;

inline void Fail(const std::string& name, const std::string& message) {
  std::printf("FAILED %s: %s\n", name.c_str(), message.c_str());
  ++failures;
}

// That every number of `got` is within `tolerance` of `want`, which is to be far above rounding
// and far below a mistake; NaN never is.
template <typename T>
void Expect(const std::string& name, const Buffer<T>& got, const std::vector<double>& want,
            double tolerance) {
  for (int64_t i = 0; i < got.size(); ++i)
    if (!(std::fabs(got.Value(i) - want[i]) <= tolerance))
      return Fail(name, "element " + std::to_string(i) + " is " + std::to_string(got.Value(i)) +
                            ", expected " + std::to_string(want[i]));
}

inline void Expect(const std::string& name, const Status& status) {
  if (!status.ok()) Fail(name, status.error);
}

// test() in each order of threads; what the emulator finds is a failure.
inline void InEverySchedule(const std::string& name, const std::function<void()>& test) {
  for (unsigned schedule : {0u, 1u, 2u, 3u}) {
    emulator::SetSchedule(schedule);
    try {
      test();
    } catch (const std::exception& error) {
      Fail(name, error.what());
    }
  }
  emulator::SetSchedule(0);
}

// The files beside this one.
void TestEmulator();
void TestAttention();
void TestClassifier();
void TestElementwise();
void TestHopper();

}  // namespace llmc::cuda::test
