// The kernels that are bound by memory.
#include "tests/cuda_harness.h"

namespace llmc::cuda::test {
namespace {

void TestGlobalNorm() {
  std::mt19937 random(0);
  std::vector<Buffer<float>> buffers;
  for (int64_t size : {1, 3, 35, 1000, 20167}) buffers.emplace_back(size, random);
  while (buffers.size() < 70) buffers.emplace_back(9, random);
  std::vector<const float*> arrays;
  std::vector<int64_t> sizes;
  double sum = 0;
  for (const auto& buffer : buffers) {
    arrays.push_back(buffer.data());
    sizes.push_back(buffer.size());
    for (int64_t i = 0; i < buffer.size(); ++i) sum += buffer.Value(i) * buffer.Value(i);
  }
  InEverySchedule("global_norm", [&] {
    Buffer<float> partials(kNormPartials), norm(1);
    Expect("global_norm", GlobalNorm(nullptr, static_cast<int>(arrays.size()), arrays.data(),
                                     sizes.data(), partials.data(), norm.data()));
    Expect("global_norm", norm, {std::sqrt(sum)}, 1e-5 * std::sqrt(sum));
  });
}

}  // namespace

void TestElementwise() { TestGlobalNorm(); }

}  // namespace llmc::cuda::test
