// How a kernel splits its work over threads, and the memory that they work in.
#pragma once

#include "cpu/types.h"

namespace llmc::LLMC_ISA {

template <typename F>
void ParallelFor(Threads& threads, int64_t n, const F& body) {
  threads.Run(
      n, [](void* context, int64_t i) { (*static_cast<const F*>(context))(i); },
      const_cast<F*>(&body));
}

// Memory of the calling thread, for one task.
template <typename T>
T* Scratch(Slot slot, int64_t count) {
  return static_cast<T*>(ThreadScratch(slot, count * sizeof(T)));
}

// Memory of all threads, for as long as the object lives.
template <typename T>
class SharedScratch {
 public:
  explicit SharedScratch(int64_t count)
      : data_(static_cast<T*>(AcquireScratch(count * sizeof(T)))) {}
  ~SharedScratch() { ReleaseScratch(data_); }
  SharedScratch(const SharedScratch&) = delete;
  SharedScratch& operator=(const SharedScratch&) = delete;

  T* data() const { return data_; }

 private:
  T* data_;
};

}  // namespace llmc::LLMC_ISA
