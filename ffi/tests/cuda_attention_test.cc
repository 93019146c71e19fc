// Attention in each of its types, head sizes and forms.
#include <algorithm>

#include "tests/cuda_attention_reference.h"
#include "tests/cuda_harness.h"

namespace llmc::cuda::test {
namespace {

template <typename T>
void TestCase(AttentionSizes sizes) {
  std::string name = "attention " + std::to_string(sizes.T) + " x " + std::to_string(sizes.HS) +
                     ", " + std::to_string(sizeof(T)) + " bytes";
  std::mt19937 random(0);
  int64_t rows = sizes.B * sizes.T, C = sizes.NH * sizes.HS;
  Buffer<T> qkv(rows * 3 * C, random), dout(rows * C, random);
  AttentionReference want(sizes, qkv, dout);
  double tolerance = std::max(8 * kEpsilon<T>, 1e-5);
  InEverySchedule(name, [&] {
    Buffer<T> out(rows * C);
    Buffer<float> lse(rows * sizes.NH);
    Expect(name, AttentionForward(nullptr, kType<T>, sizes, qkv.data(), out.data(), lse.data()));
    Expect(name + " out", out, want.out, tolerance);
    Expect(name + " lse", lse, want.lse, 1e-4);
    for (bool deterministic : {false, true}) {
      Buffer<T> dqkv(rows * 3 * C);
      Buffer<float> delta(rows * sizes.NH);
      Buffer<float> dq_sum(deterministic ? 0 : sizes.B * AttentionDqRows(sizes.T) * C);
      Expect(name, AttentionBackward(nullptr, kType<T>, sizes, deterministic, out.data(),
                                     lse.data(), dout.data(), qkv.data(), dqkv.data(),
                                     delta.data(), dq_sum.data()));
      Expect(name + (deterministic ? " dqkv, deterministic" : " dqkv"), dqkv, want.dqkv,
             4 * tolerance);
    }
  });
}

}  // namespace

void TestAttention() {
  emulator::SetArchitecture(120);  // the least shared memory; for sm_90 see cuda_hopper_test.cc
  TestCase<bf16>({1, 130, 1, 64});
  TestCase<bf16>({2, 1, 3, 128});
  TestCase<f16>({1, 65, 1, 128});
  TestCase<float>({2, 33, 2, 7});
  emulator::SetArchitecture(90);
}

}  // namespace llmc::cuda::test
