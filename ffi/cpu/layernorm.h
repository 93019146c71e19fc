// layernorm and residual_layernorm (llmc_jax/ops/layernorm.py, residual_layernorm.py):
//   out = norm * weight + bias, norm = (inp - mean) * rstd
//   dinp = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)), dnorm = dout * weight
//   dweight = sum(dout * norm), dbias = sum(dout), over the rows
// With a residual, inp is first the sum of two tensors, and dinp grows by the gradient of that sum.
// A task takes a block of rows, each of which stays in the cache for all passes over it. The sums
// over rows are made in each block and then over blocks, in an order that does not depend on
// threads.
#pragma once

#include "cpu/tasks.h"
#include "cpu/vec.h"

namespace llmc::LLMC_ISA {

struct TwoVecs {
  Vec first, second;
};
inline TwoVecs& operator+=(TwoVecs& a, const TwoVecs& b) {
  a.first += b.first;
  a.second += b.second;
  return a;
}

// The sum of term(i, n), a V, over the vectors of a row of C, lane by lane, in sums that need not
// wait for each other.
template <typename V, typename Term>
V RowSum(int64_t C, const Term& term) {
  constexpr int kSums = 4;
  V sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kLanes <= C; i += kSums * kLanes)
#pragma GCC unroll 4
    for (int k = 0; k < kSums; ++k) sums[k] += term(i + k * kLanes, Whole{});
  ForVectors(C - i, [&](int64_t j, auto n) { sums[0] += term(i + j, n); });
  sums[0] += sums[1];
  sums[2] += sums[3];
  return sums[0] += sums[2];
}

constexpr int64_t kNormRows = 16;

// branch and sum may be null: then out is the layernorm of inp alone.
template <typename T>
void LayerNormForward(Threads& threads, int64_t N, int64_t C, const T* inp, const T* branch,
                      const float* weight, const float* bias, float eps, T* sum, T* out,
                      float* mean, float* rstd) {
  const int64_t whole = C / kLanes * kLanes;
  ParallelFor(threads, CeilDiv(N, kNormRows), [&](int64_t block) {
    float* x = Scratch<float>(Slot::kRows, RoundUp(C, kLanes));
    for (int64_t n = block * kNormRows; n < Min(N, (block + 1) * kNormRows); ++n) {
      const int64_t row = n * C;
      auto load = [&](int64_t i, auto some) {
        Vec v = LoadUpTo(inp + row + i, some);
        Store(x + i, v);
        return v;
      };
      auto load_sum = [&](int64_t i, auto some) {  // rounded as the sum of two tensors of T is
        Vec v = LoadUpTo(inp + row + i, some) + LoadUpTo(branch + row + i, some);
        Store(x + i, Rounded<T>(v));
        StoreUpTo(sum + row + i, v, some);
        return Rounded<T>(v);
      };
      const float m = Sum(branch ? RowSum<Vec>(C, load_sum) : RowSum<Vec>(C, load)) / C;
      float squares = Sum(RowSum<Vec>(whole, [&](int64_t i, auto) {
        Vec d = Load(x + i) - m;
        return d * d;
      }));
      for (int64_t i = whole; i < C; ++i) squares += (x[i] - m) * (x[i] - m);
      const float r = 1 / __builtin_sqrtf(squares / C + eps);
      ForVectors(C, [&](int64_t i, auto some) {
        Vec norm = (Load(x + i) - m) * r;
        StoreUpTo(out + row + i, norm * LoadUpTo(weight + i, some) + LoadUpTo(bias + i, some),
                  some);
      });
      mean[n] = m, rstd[n] = r;
    }
  });
}

// dsum, the gradient that dinp grows by, may be null.
template <typename T>
void LayerNormBackward(Threads& threads, int64_t N, int64_t C, const float* mean,
                       const float* rstd, const T* dsum, const T* dout, const T* inp,
                       const float* weight, T* dinp, float* dweight, float* dbias) {
  const int64_t padded = RoundUp(C, kLanes), blocks = CeilDiv(N, kNormRows);
  SharedScratch<float> scratch(blocks * 2 * padded);
  float* partial = scratch.data();  // each block's dweight, dbias
  ParallelFor(threads, blocks, [&](int64_t block) {
    float *dw = partial + block * 2 * padded, *db = dw + padded;
    __builtin_memset(dw, 0, 2 * padded * sizeof(float));
    for (int64_t n = block * kNormRows; n < Min(N, (block + 1) * kNormRows); ++n) {
      const int64_t row = n * C;
      const float m = mean[n], r = rstd[n];
      auto norm = [&](int64_t i, auto some) { return (LoadUpTo(inp + row + i, some) - m) * r; };
      const TwoVecs sums = RowSum<TwoVecs>(C, [&](int64_t i, auto some) {
        Vec x = norm(i, some), d = LoadUpTo(dout + row + i, some);  // beyond C it is 0
        Vec dnorm = d * LoadUpTo(weight + i, some);
        Store(dw + i, Load(dw + i) + d * x);
        Store(db + i, Load(db + i) + d);
        return TwoVecs{dnorm, dnorm * x};
      });
      const float dnorm_mean = Sum(sums.first) / C, dnorm_norm_mean = Sum(sums.second) / C;
      auto gradient = [&](int64_t i, auto some) {
        Vec dnorm = LoadUpTo(dout + row + i, some) * LoadUpTo(weight + i, some);
        return r * (dnorm - dnorm_mean - norm(i, some) * dnorm_norm_mean);
      };
      ForVectors(C, [&](int64_t i, auto some) {
        Vec d = gradient(i, some);
        if (dsum) d += LoadUpTo(dsum + row + i, some);
        StoreUpTo(dinp + row + i, d, some);
      });
    }
  });
  SumOfBlocks(partial, blocks, 2 * padded, C, dweight);
  SumOfBlocks(partial + padded, blocks, 2 * padded, C, dbias);
}

}  // namespace llmc::LLMC_ISA
