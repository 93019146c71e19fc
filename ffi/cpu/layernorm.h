// layernorm and residual_layernorm (llmc_jax/ops/layernorm.py, residual_layernorm.py):
//   out = norm * weight + bias, norm = (inp - mean) * rstd
//   dinp = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)), dnorm = dout * weight
//   dweight = sum(dout * norm), dbias = sum(dout), over the rows
// With a residual, inp is first the sum of two tensors, and dinp grows by the gradient of that sum.
// A task takes a block of rows, each of which stays in the cache for all passes over it. The sums
// over rows are made in each block and then over blocks, in an order that does not depend on
// threads.
#pragma once

#include "cpu/gemm.h"

namespace llmc::LLMC_ISA {

// Widens a row; columns up to a whole vector are 0.
template <typename T>
void LoadRow(const T* in, int64_t C, float* out) {
  ForRow(
      C, [&](int64_t i) { Store(out + i, Load(in + i)); },
      [&](int64_t i, int64_t some) { Store(out + i, LoadSome(in + i, some)); });
}

template <typename T>
void StoreRow(const float* in, int64_t C, T* out) {
  ForRow(
      C, [&](int64_t i) { Store(out + i, Load(in + i)); },
      [&](int64_t i, int64_t some) { StoreSome(out + i, Load(in + i), some); });
}

// x += in, rounded as the sum of two tensors of type T is
template <typename T>
void AddRow(const T* in, int64_t C, float* x) {
  ForRow(
      C, [&](int64_t i) { Store(x + i, Rounded<T>(Load(x + i) + Load(in + i))); },
      [&](int64_t i, int64_t some) {
        Store(x + i, Rounded<T>(Load(x + i) + LoadSome(in + i, some)));
      });
}

// mean and rstd of x, which is padded with zeros to `padded`.
inline void RowStatistics(const float* x, int64_t C, int64_t padded, float eps, float* mean,
                          float* rstd) {
  Vec sum{}, squares{};
  for (int64_t i = 0; i < padded; i += kLanes) sum += Load(x + i);
  float m = Sum(sum) / C, rest = 0;
  int64_t i = 0;
  for (; i + kLanes <= C; i += kLanes) {
    Vec d = Load(x + i) - m;
    squares += d * d;
  }
  for (; i < C; ++i) rest += (x[i] - m) * (x[i] - m);
  *mean = m;
  *rstd = 1 / __builtin_sqrtf((Sum(squares) + rest) / C + eps);
}

constexpr int64_t kNormRows = 16;

// branch and sum may be null: then out is the layernorm of inp alone.
template <typename T>
void LayerNormForward(Threads& threads, int64_t N, int64_t C, const T* inp, const T* branch,
                      const float* weight, const float* bias, float eps, T* sum, T* out,
                      float* mean, float* rstd) {
  const int64_t padded = RoundUp(C, kLanes);
  ParallelFor(threads, CeilDiv(N, kNormRows), [&](int64_t block) {
    float* x = Scratch<float>(Slot::kRows, padded * 3);
    float *w = x + padded, *b = w + padded;
    LoadRow(weight, C, w);
    LoadRow(bias, C, b);
    for (int64_t n = block * kNormRows; n < Min(N, (block + 1) * kNormRows); ++n) {
      LoadRow(inp + n * C, C, x);
      if (branch) {
        AddRow(branch + n * C, C, x);
        StoreRow(x, C, sum + n * C);
      }
      RowStatistics(x, C, padded, eps, &mean[n], &rstd[n]);
      for (int64_t i = 0; i < padded; i += kLanes)
        Store(x + i, (Load(x + i) - mean[n]) * rstd[n] * Load(w + i) + Load(b + i));
      StoreRow(x, C, out + n * C);
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
    float* x = Scratch<float>(Slot::kRows, padded * 3);
    float *dy = x + padded, *w = dy + padded;
    LoadRow(weight, C, w);
    for (int64_t n = block * kNormRows; n < Min(N, (block + 1) * kNormRows); ++n) {
      LoadRow(inp + n * C, C, x);
      LoadRow(dout + n * C, C, dy);
      Vec dnorm_sum{}, dnorm_norm_sum{};
      for (int64_t i = 0; i < padded; i += kLanes) {
        Vec norm = (Load(x + i) - mean[n]) * rstd[n], d = Load(dy + i), dnorm = d * Load(w + i);
        Store(x + i, norm);
        Store(dw + i, Load(dw + i) + d * norm);  // beyond C, d is 0
        Store(db + i, Load(db + i) + d);
        dnorm_sum += dnorm;
        dnorm_norm_sum += dnorm * norm;
      }
      float dnorm_mean = Sum(dnorm_sum) / C, dnorm_norm_mean = Sum(dnorm_norm_sum) / C;
      for (int64_t i = 0; i < padded; i += kLanes)
        Store(x + i, rstd[n] * (Load(dy + i) * Load(w + i) - dnorm_mean -
                                Load(x + i) * dnorm_norm_mean));
      if (dsum) AddRow(dsum + n * C, C, x);
      StoreRow(x, C, dinp + n * C);
    }
  });
  for (int64_t i = 0; i < C; ++i) {
    float dw = 0, db = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      dw += partial[block * 2 * padded + i];
      db += partial[block * 2 * padded + padded + i];
    }
    dweight[i] = dw;
    dbias[i] = db;
  }
}

}  // namespace llmc::LLMC_ISA
