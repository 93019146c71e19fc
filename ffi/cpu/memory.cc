#include "cpu/memory.h"

#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace llmc {

void UseHugePages(void* data, uint64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uint64_t kPage = 2 << 20;
  if (bytes < kPage / 4) return;
  // whole pages, with what lies beside `data`: the other temporaries of the step
  uint64_t begin = reinterpret_cast<uint64_t>(data) / kPage * kPage;
  uint64_t end = (reinterpret_cast<uint64_t>(data) + bytes + kPage - 1) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace llmc

// Gives the operating system back what the C library holds but nobody uses.
extern "C" void llmc_trim_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}
