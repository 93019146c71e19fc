#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "cpu/memory.h"
#include "cpu/types.h"

namespace llmc {
namespace {

struct Buffer {
  void* data = nullptr;
  int64_t bytes = 0;
  bool used = false;

  // Makes it at least `wanted` bytes; what was in it is lost.
  void Grow(int64_t wanted) {
    if (wanted <= bytes) return;
    std::free(data);
    bytes = 0;
    int64_t rounded = (wanted + 63) / 64 * 64;
    data = std::aligned_alloc(64, rounded);
    if (!data) throw std::bad_alloc();
    UseHugePages(data, rounded);
    bytes = rounded;
  }
};

struct ThreadBuffers {
  Buffer of[static_cast<int>(Slot::kCount)];

  ~ThreadBuffers() {
    for (Buffer& buffer : of) std::free(buffer.data);
  }
};

struct SharedBuffers {
  std::mutex mutex;
  std::vector<Buffer> all;
};

SharedBuffers& Shared() {
  static SharedBuffers& buffers = *new SharedBuffers;  // threads may use it while the process ends
  return buffers;
}

}  // namespace

void* ThreadScratch(Slot slot, int64_t bytes) {
  thread_local ThreadBuffers buffers;
  Buffer& buffer = buffers.of[static_cast<int>(slot)];
  buffer.Grow(bytes);
  return buffer.data;
}

// The smallest free buffer that is large enough, else the largest free one, which grows: so there
// are as many as were ever used at once, and each as large as was ever needed.
void* AcquireScratch(int64_t bytes) {
  std::lock_guard<std::mutex> lock(Shared().mutex);
  Buffer* best = nullptr;
  for (Buffer& buffer : Shared().all) {
    if (buffer.used) continue;
    bool enough = buffer.bytes >= bytes;
    if (!best || (enough && (best->bytes < bytes || buffer.bytes < best->bytes)) ||
        (!enough && best->bytes < buffer.bytes))
      best = &buffer;
  }
  if (!best) best = &Shared().all.emplace_back();
  best->Grow(std::max<int64_t>(bytes, 1));
  best->used = true;
  return best->data;
}

void ReleaseScratch(void* memory) {
  std::lock_guard<std::mutex> lock(Shared().mutex);
  for (Buffer& buffer : Shared().all)
    if (buffer.data == memory) buffer.used = false;
}

}  // namespace llmc
