// What the driver is made of: arrays of exact size, the comparison of what a kernel wrote with what
// it should have written, and the instruction sets.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/kernels.h"
#include "tests/pool.h"
#include "tests/reference.h"

extern "C" int llmc_select_isa(const char* name);
extern "C" const char* llmc_supported_isas();

namespace llmc {

// `size` elements that end where their memory ends, so that AddressSanitizer sees any overrun, and
// begin `offset` elements after a multiple of 64 bytes. At first all are NaN.
template <typename T>
class Array {
 public:
  explicit Array(int64_t size, int64_t offset = 0) : size_(size), offset_(offset) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, (size + offset) * sizeof(T))) throw std::bad_alloc();
    memory_.reset(static_cast<T*>(std::memset(memory, 0xff, (size + offset) * sizeof(T))));
  }

  int64_t size() const { return size_; }
  T* data() { return memory_.get() + offset_; }
  const T* data() const { return memory_.get() + offset_; }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  int64_t size_, offset_;
  std::unique_ptr<T, Free> memory_;
};

// What a kernel writes in its two calls, which differ in how vectors are aligned: where a kernel
// streams its results, it takes another path.
template <typename T>
class Output {
 public:
  explicit Output(int64_t size) : calls_{Array<T>(size), Array<T>(size, /*offset=*/1)} {}

  // What the kernel updates in place.
  explicit Output(const Array<T>& initial) : Output(initial.size()) {
    for (Array<T>& call : calls_) std::memcpy(call.data(), initial.data(), size() * sizeof(T));
  }

  int64_t size() const { return calls_[0].size(); }
  T* data(int call) { return calls_[call].data(); }
  const T* data(int call = 0) const { return calls_[call].data(); }

 private:
  Array<T> calls_[2];
};

template <typename T>
Matrix MatrixOf(const Array<T>& array, int64_t rows, int64_t columns) {
  return MatrixOf(array.data(), rows, columns);
}
template <typename T>
Matrix MatrixOf(const Output<T>& output, int64_t rows, int64_t columns) {
  return MatrixOf(output.data(), rows, columns);
}

// The same numbers each time.
class Random {
 public:
  uint64_t Bits() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  double Uniform(double low, double high) { return low + (high - low) * (Bits() >> 11) * 0x1p-53; }
  int32_t Below(int64_t n) { return static_cast<int32_t>(Bits() % n); }

  // Numbers up to `size` away from `center`.
  template <typename T>
  Array<T> Numbers(int64_t n, double size = 1, double center = 0) {
    Array<T> numbers(n);
    for (int64_t i = 0; i < n; ++i) Assign(Uniform(center - size, center + size), &numbers[i]);
    return numbers;
  }

 private:
  uint64_t state_ = 1;
};

// How many outputs of the kernels for one instruction set and element type were right, and how
// close the worst came to its tolerance.
struct Score {
  int64_t right = 0, wrong = 0;
  double worst = 0;  // |error| / tolerance
  std::string where = "none";
};

// One kernel on one shape, instruction set and element type.
class Check {
 public:
  Check(std::string title, std::string call, Threads& first, Threads& second, Score& score)
      : title_(std::move(title)), call_(std::move(call)), threads_{&first, &second},
        score_(score) {}

  // body(threads, call) for both calls of the kernel.
  template <typename Body>
  void Twice(const Body& body) const {
    for (int call = 0; call < 2; ++call) body(*threads_[call], call);
  }

  // That `got` is what is wanted, NaN where that is, and bit for bit the same after both calls.
  template <typename T>
  void operator()(const char* name, const Output<T>& got, const std::vector<Want>& want) const {
    if (got.size() != static_cast<int64_t>(want.size())) std::abort();  // the driver's own mistake
    int64_t worst = 0;
    double share = 0;
    for (int64_t i = 0; i < got.size() && share == share; ++i) {  // NaN is as bad as can be
      if (std::isnan(want[i].value) && std::isnan(Value(got.data()[i]))) continue;
      double here = std::fabs(Value(got.data()[i]) - want[i].value) / Tolerance<T>(want[i]);
      if (!(here <= share)) share = here, worst = i;
    }
    if (!(share <= 1))
      return Fail(name, worst, Value(got.data()[worst]), want[worst].value,
                  Tolerance<T>(want[worst]));
    if (std::memcmp(got.data(0), got.data(1), got.size() * sizeof(T))) {
      int64_t i = 0;
      while (!std::memcmp(got.data(0) + i, got.data(1) + i, sizeof(T))) ++i;
      return Fail(name, i, Value(got.data(1)[i]), Value(got.data(0)[i]), /*tolerance=*/0);
    }
    ++score_.right;
    if (share > score_.worst) score_.worst = share, score_.where = call_ + " " + name;
  }

 private:
  // Where nothing is tolerated, the second call differs from the first.
  void Fail(const char* name, int64_t i, double got, double want, double tolerance) const {
    ++score_.wrong;
    std::printf("FAILED %s %s: %s[%lld] is %.9g, wanted %.9g within %.2g\n", title_.c_str(),
                call_.c_str(), name, static_cast<long long>(i), got, want, tolerance);
  }

  std::string title_, call_;
  Threads* threads_[2];
  Score& score_;
};

// The types' name in the report.
template <typename T, typename W = T>
const char* Types() {
  if constexpr (std::is_same_v<T, float>)
    return "float";
  else
    return std::is_same_v<W, float> ? "bf16, float" : "bf16";
}

// The sizes of a call by name.
using Shape = std::vector<std::pair<const char*, int64_t>>;

// Runs checks on every instruction set of this machine, or on those that are emulated alone.
class Driver {
 public:
  Driver() {
#if defined(LLMC_EMULATED_ISAS)
    if (llmc_select_isa("amx"))
      isas_ = {{"amx", &kAmxKernels}, {"avx512 with bf16", &kAvx512Bf16Kernels}};
#else
    std::string names = llmc_supported_isas();
    for (size_t begin = 0; begin < names.size();) {
      size_t end = std::min(names.find(',', begin), names.size());
      std::string name = names.substr(begin, end - begin);
      llmc_select_isa(name.c_str());
      Add(name, ActiveKernels());
      begin = end + 1;
    }
#endif
  }

  // body(kernels, check) for each instruction set.
  template <typename Body>
  void OnEach(const std::string& types, const std::string& kernel, const Shape& shape,
              const Body& body) {
    std::string call = kernel;
    for (auto& [name, size] : shape) call += std::string(" ") + name + "=" + std::to_string(size);
    for (size_t i = 0; i < isas_.size(); ++i)
      body(*isas_[i].kernels, Check(isas_[i].name + " " + types, call, first_, second_,
                                    scores_[{i, types}]));
  }

  // Prints a line for each instruction set and element type; whether all was right.
  bool Report() const {
    bool right = true;
    if (scores_.empty()) std::puts("nothing was tested: this machine lacks the instruction set");
    for (auto& [key, score] : scores_) {
      std::printf("%-16s %-11s %4lld results right, %lld wrong; worst error %.2f of its tolerance, "
                  "%s\n",
                  isas_[key.first].name.c_str(), key.second.c_str(),
                  static_cast<long long>(score.right), static_cast<long long>(score.wrong),
                  score.worst, score.where.c_str());
      right = right && score.wrong == 0;
    }
    return right;
  }

 private:
  struct Isa {
    std::string name;
    const Kernels* kernels;
  };

  void Add(const std::string& name, const Kernels& kernels) {
    isas_.push_back({name, &kernels});
#if defined(__x86_64__)
    if (&kernels == &kAvx512Bf16Kernels) {  // which hides another table
      isas_.back().name = "avx512 with bf16";
      isas_.push_back({"avx512", &kAvx512Kernels});
    }
#endif
  }

  std::vector<Isa> isas_;
  std::map<std::pair<size_t, std::string>, Score> scores_;
  Pool first_{2, Order::kAscending}, second_{3, Order::kDescending};
};

// reference(weight), where kernels may read weights of another type than T as they are or as T.
template <typename T, typename W, typename Reference>
Matrix WithWeights(const Matrix& weight, const Reference& reference) {
  if constexpr (std::is_same_v<T, W>)
    return reference(weight);
  else
    return Between(reference(weight), reference(RoundedTo<T>(weight)));
}

inline Array<int32_t> Tokens(Random& random, int64_t n, int64_t V) {
  Array<int32_t> tokens(n);
  for (int64_t i = 0; i < n; ++i) tokens[i] = random.Below(V);
  return tokens;
}

}  // namespace llmc
