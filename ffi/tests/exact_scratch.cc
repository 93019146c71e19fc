// Scratch memory that forgives nothing: memory of exactly the size asked for, new at every request
// and full of NaN (as float32 and as bfloat16), while what the slot held before is freed. So AddressSanitizer sees a kernel that
// oversteps its scratch or uses it after asking for the slot again, and what was never written
// shows in the results.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "cpu/types.h"

namespace llmc {
namespace {

struct Buffers {
  void* data[static_cast<int>(Slot::kCount)] = {};

  ~Buffers() {
    for (void* buffer : data) std::free(buffer);
  }
};

}  // namespace

void* ThreadScratch(Slot slot, int64_t bytes) {
  thread_local Buffers buffers;
  void*& buffer = buffers.data[static_cast<int>(slot)];
  std::free(buffer);
  buffer = nullptr;
  return buffer = AcquireScratch(bytes);
}

void* AcquireScratch(int64_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, bytes)) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes);
  auto* words = static_cast<uint32_t*>(memory);
  // not of ones alone: attention rounds to bfloat16 by an addition, which makes 0 of that
  std::fill(words, words + bytes / 4, 0x7fc07fc0u);
  return memory;
}

void ReleaseScratch(void* memory) { std::free(memory); }

}  // namespace llmc
