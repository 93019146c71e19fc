// The kernels that are bound by memory.
#include <algorithm>
#include <numeric>

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

template <typename T>
void TestEncoder(EncoderSizes s, int tokens, std::mt19937& random) {
  std::string name = "encoder of " + std::to_string(s.B * s.T) + " x " + std::to_string(s.C) +
                     ", " + std::to_string(sizeof(T)) + " bytes";
  int N = s.B * s.T;
  Buffer<T> dout(int64_t{N} * s.C, random);
  Buffer<float> before(int64_t{s.Vp} * s.C, random);
  std::vector<int> inp(N), order(N), sorted(N);
  for (int& token : inp) token = static_cast<int>(random() % tokens);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return inp[a] < inp[b]; });
  for (int n = 0; n < N; ++n) sorted[n] = inp[order[n]];
  std::vector<double> dwte(before.size()), dwpe(int64_t{s.max_T} * s.C);
  for (int64_t i = 0; i < before.size(); ++i) dwte[i] = before.Value(i);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = 0; c < s.C; ++c) {
      dwte[inp[n] * int64_t{s.C} + c] += dout.Value(n * s.C + c);
      dwpe[n % s.T * s.C + c] += dout.Value(n * s.C + c);
    }
  InEverySchedule(name, [&] {
    Buffer<float> in_place(before), of_positions(dwpe.size());
    Buffer<float> partials(CeilDiv(N, kEncoderWindow) * 2 * s.C);
    Expect(name, EncoderBackward(nullptr, kType<T>, s, dout.data(), sorted.data(), order.data(),
                                 in_place.data(), of_positions.data(), partials.data()));
    Expect(name + ", dwte", in_place, dwte, 1e-4);
    Expect(name + ", dwpe", of_positions, dwpe, 1e-4);
  });
}

void TestEncoder(std::mt19937& random) {
  // one row; runs that end in their window, cross into the next, fill several; one token only
  for (auto [tokens, s] : {std::pair(1, EncoderSizes{1, 1, 7, 3, 1}),
                           {40, {2, 40, 12, 50, 45}},
                           {9, {3, 63, 16, 9, 63}},
                           {2, {2, 65, 8, 5, 70}},
                           {1, {2, 64, 264, 2, 64}}}) {
    TestEncoder<float>(s, tokens, random);
    TestEncoder<bf16>(s, tokens, random);
  }
}

}  // namespace

void TestElementwise() {
  std::mt19937 random(0);
  TestGlobalNorm();
  TestEncoder(random);
}

}  // namespace llmc::cuda::test
