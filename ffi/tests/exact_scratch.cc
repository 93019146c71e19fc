// Scratch memory that forgives nothing: memory of exactly the size asked for, new at every request
// and full of NaN, while what the slot held before is freed. So AddressSanitizer sees a kernel that
// oversteps its scratch or uses it after asking for the slot again, and what was never written
// shows in the results.
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
  return std::memset(memory, 0xff, bytes);
}

void ReleaseScratch(void* memory) { std::free(memory); }

}  // namespace llmc
