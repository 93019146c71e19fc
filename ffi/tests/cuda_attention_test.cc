// Attention in each of its types, head sizes and forms.
#include <algorithm>

#include "tests/cuda_harness.h"

namespace llmc::cuda::test {
namespace {

// What the kernels should give, by the definition; heads in the place where the kernels have them.
struct Reference {
  std::vector<double> out, lse, dqkv;

  template <typename T>
  Reference(AttentionSizes sizes, const Buffer<T>& qkv, const Buffer<T>& dout)
      : out(dout.size()), lse(sizes.B * sizes.NH * sizes.T), dqkv(qkv.size()) {
    int64_t C = sizes.NH * sizes.HS;
    for (int64_t b = 0; b < sizes.B; ++b)
      for (int64_t h = 0; h < sizes.NH; ++h)
        for (int64_t t = 0; t < sizes.T; ++t) {
          // where the numbers of time s are in qkv and in out
          auto in = [&](int64_t s, int part) {
            return ((b * sizes.T + s) * 3 + part) * C + h * sizes.HS;
          };
          int64_t at = (b * sizes.T + t) * C + h * sizes.HS;
          std::vector<double> p(t + 1), dp(t + 1);
          double sum = 0, scale = 1 / std::sqrt(double(sizes.HS)), inner = 0;
          for (int64_t s = 0; s <= t; ++s) {
            for (int64_t i = 0; i < sizes.HS; ++i) {
              p[s] += qkv.Value(in(t, 0) + i) * qkv.Value(in(s, 1) + i) * scale;
              dp[s] += dout.Value(at + i) * qkv.Value(in(s, 2) + i);
            }
            sum += p[s] = std::exp(p[s]);
          }
          lse[(b * sizes.NH + h) * sizes.T + t] = std::log(sum);
          for (int64_t s = 0; s <= t; ++s) inner += (p[s] /= sum) * dp[s];
          for (int64_t s = 0; s <= t; ++s)
            for (int64_t i = 0; i < sizes.HS; ++i) {
              double ds = p[s] * (dp[s] - inner) * scale;
              out[at + i] += p[s] * qkv.Value(in(s, 2) + i);
              dqkv[in(t, 0) + i] += ds * qkv.Value(in(s, 1) + i);
              dqkv[in(s, 1) + i] += ds * qkv.Value(in(t, 0) + i);
              dqkv[in(s, 2) + i] += p[s] * dout.Value(at + i);
            }
        }
  }
};

template <typename T>
void TestCase(AttentionSizes sizes) {
  std::string name = "attention " + std::to_string(sizes.T) + " x " + std::to_string(sizes.HS) +
                     ", " + std::to_string(sizeof(T)) + " bytes";
  std::mt19937 random(0);
  int64_t rows = sizes.B * sizes.T, C = sizes.NH * sizes.HS;
  Buffer<T> qkv(rows * 3 * C, random), dout(rows * C, random);
  Reference want(sizes, qkv, dout);
  double tolerance = std::max(8 * kEpsilon<T>, 1e-5);
  InEverySchedule(name, [&] {
    Buffer<T> out(rows * C);
    Buffer<float> lse(rows * sizes.NH);
    Expect(name, AttentionForward(nullptr, kType<T>, sizes, qkv.data(), out.data(), lse.data()));
    Expect(name + " out", out, want.out, tolerance);
    Expect(name + " lse", lse, want.lse, 1e-4);
    for (bool deterministic : {false, true}) {
      Buffer<T> dqkv(rows * 3 * C);
      Buffer<float> delta(rows * sizes.NH), dq_sum(deterministic ? 0 : rows * C);
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
  TestCase<bf16>({1, 130, 1, 64});
  TestCase<bf16>({2, 1, 3, 128});
  TestCase<f16>({1, 65, 1, 128});
  TestCase<float>({2, 33, 2, 7});
}

}  // namespace llmc::cuda::test
