// What kernels, handlers and tests of the CPU share: element types, threads, scratch memory.
// Nothing here is inline code, so that it may be used by files of any instruction set.
#pragma once

#include <cstdint>

namespace llmc {

// bfloat16: the upper half of a float
struct BF16 {
  uint16_t bits;
};

// The threads that a handler was given.
class Threads {
 public:
  // How many may work at once; a number of parts to split work in.
  virtual int64_t count() const = 0;
  // Runs task(context, 0) ... task(context, n - 1), in any order; returns when all have ended.
  virtual void Run(int64_t n, void (*task)(void*, int64_t), void* context) = 0;

 protected:
  ~Threads() = default;
};

// Memory of at least `bytes`, aligned to 64, that belongs to the calling thread until it asks for
// the same slot again: small, for one task. It is kept between calls. Throws std::bad_alloc.
enum class Slot { kA, kC, kRows, kCount };
void* ThreadScratch(Slot slot, int64_t bytes);

// The same for a whole call of a kernel and all its threads, until it is released: large. What is
// released is kept for the next call, whichever thread makes it.
void* AcquireScratch(int64_t bytes);
void ReleaseScratch(void* memory);

// The gradient of one tensor, of `size` elements: BF16 where `half`, else float. Where there is
// `inp`, it is in its factors (factors.h): data (N, size / C) and inp (N, C).
struct Gradient {
  const void* data = nullptr;
  int64_t size = 0;
  bool half = false;
  const void* inp = nullptr;
  int64_t N = 0, C = 0;
};

// One tensor of the update and what all tensors share; unbias1 = 1 / (1 - beta1^step).
struct AdamWLeaf {
  float *param, *m, *v;
  Gradient grad;
  float weight_decay;
};
struct AdamWHyper {
  float lr, scale, beta1, beta2, eps, unbias1, unbias2;
};

}  // namespace llmc
