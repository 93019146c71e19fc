// Every CUDA kernel, on the emulator, against plain arithmetic in double: `make sanitize` builds
// this so that a wrong access stops it.
#include "tests/cuda_harness.h"

int main() {
  using namespace llmc::cuda::test;
  TestEmulator();
  TestAttention();
  TestClassifier();
  TestElementwise();
  TestHopper();
  std::printf(failures ? "%d failures\n" : "all CUDA kernels passed\n", failures);
  return failures ? 1 : 0;
}
