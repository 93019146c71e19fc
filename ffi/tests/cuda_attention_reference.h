// Attention forward and backward in double.
#pragma once

#include "tests/cuda_harness.h"

namespace llmc::cuda::test {

// What the kernels should give, by the definition; heads in the place where the kernels have them.
struct AttentionReference {
  std::vector<double> out, lse, dqkv;

  template <typename T>
  AttentionReference(AttentionSizes sizes, const Buffer<T>& qkv, const Buffer<T>& dout)
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

}  // namespace llmc::cuda::test
