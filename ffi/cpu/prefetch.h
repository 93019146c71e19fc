// Memory that is brought to a cache before it is needed, a few lines at a time while something else
// is computed: many at once would be waited for. What lies far apart the processor does not
// foresee.
#pragma once

#include "cpu/pack.h"

namespace llmc::LLMC_ISA {

constexpr int64_t kLine = 64;  // bytes

// Lines of memory that are brought to a cache, `each` at a time.
class Ahead {
 public:
  Ahead(const void* begin, int64_t each)
      : next_(static_cast<const char*>(begin)), each_(each * kLine) {}

  template <int kLevel>
  void Some() {
    for (int64_t byte = 0; byte < each_; byte += kLine)
      __builtin_prefetch(next_ + byte, 0, 4 - kLevel);
    next_ += each_;
  }

 private:
  const char* next_;
  const int64_t each_;  // bytes
};

// Part `part` of `parts` of a panel of so many words, in `times` calls of Some.
inline Ahead ShareOf(const uint32_t* panel, int64_t words, int64_t part, int64_t parts,
                     int64_t times) {
  const int64_t share = CeilDiv(words, parts * times);
  return {panel + part * share * times, CeilDiv(share, kLine / int64_t{sizeof(uint32_t)})};
}

// Rows of some tensors that are needed soon: to the second-level cache.
class Soon {
 public:
  explicit Soon(int64_t row_bytes) : lines_(CeilDiv(row_bytes, kLine)) {}

  // Rows from `row` on, `stride` elements apart; none if their number is not positive.
  template <typename T>
  void Add(const T* row, int64_t stride, int64_t rows) {
    if (rows <= 0) return;
    parts_[count_++] = {reinterpret_cast<const char*>(row), stride * int64_t{sizeof(T)}, rows};
    left_ += rows * lines_;
  }
  // Spreads them over so many calls of Some.
  void Spread(int64_t calls) { each_ = CeilDiv(left_, Max<int64_t>(calls, 1)); }

  void Some() {
    for (int64_t i = Min(each_, left_); i > 0; --i, --left_) {
      Part& part = parts_[count_ - 1];
      __builtin_prefetch(part.row + line_ * kLine, 0, 2);
      if (++line_ < lines_) continue;
      line_ = 0;
      part.row += part.stride;
      if (--part.rows == 0) --count_;
    }
  }

 private:
  struct Part {
    const char* row;
    int64_t stride, rows;
  };
  Part parts_[8];
  const int64_t lines_;
  int64_t count_ = 0, left_ = 0, each_ = 0, line_ = 0;
};

// The block of rows by k at the start of m, in so many calls of Some.
template <typename T>
Soon SoonPacked(const Operand<T>& m, int64_t rows, int64_t k, int64_t calls) {
  const bool along_k = m.k_stride == 1;
  Soon soon(Max<int64_t>(0, along_k ? k : rows) * sizeof(T));
  soon.Add(m.data, along_k ? m.row_stride : m.k_stride, along_k ? rows : k);
  soon.Spread(calls);
  return soon;
}

}  // namespace llmc::LLMC_ISA
