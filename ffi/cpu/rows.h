// Loops over rows of floats, written so that the compiler vectorises them. Each is compiled for
// several instruction sets and the loader takes the best one the CPU has.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__x86_64__) && defined(__gnu_linux__)
#define LLMC_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LLMC_CLONES
#endif

namespace llmc {

// e^x for x <= 0 to about 2 ulp; 0 below -87, where a float would be subnormal.
// x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 6, 2^n by the exponent
// bits. ln 2 is split in two so that n ln 2 is exact (Cody & Waite 1980).
inline float Exp(float x) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  float clamped = x < -87.f ? -87.f : x;
  float n = (clamped * kLog2E + kRound) - kRound;
  float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return x < -87.f ? 0.f : p * power;
}

LLMC_CLONES static float RowMax(const float* x, int64_t n) {
  float max = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : max)
  for (int64_t i = 0; i < n; ++i) max = std::max(max, x[i]);
  return max;
}

// sum of e^(x - max), max >= every x. Summed in chunks: over a vocabulary of 50,257 one float
// loses three digits.
LLMC_CLONES static float RowSumExp(const float* x, float max, int64_t n) {
  constexpr int64_t kChunk = 1024;
  double total = 0;
  for (int64_t start = 0; start < n; start += kChunk) {
    int64_t end = std::min(n, start + kChunk);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = start; i < end; ++i) sum += Exp(x[i] - max);
    total += sum;
  }
  return static_cast<float>(total);
}

// out = e^(x - max) * scale; out may be x
LLMC_CLONES static void RowExp(const float* x, float max, float scale, int64_t n, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = Exp(x[i] - max) * scale;
}

// c += a b, row-major: c (m,n) with row stride ldc, b (k,n) with row stride ldb,
// a(i,p) = a[i * a_row + p * a_column], so that a may be a transpose.
LLMC_CLONES static void MatmulAdd(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row,
                                  int64_t a_column, const float* b, int64_t ldb, float* c,
                                  int64_t ldc) {
  constexpr int64_t kRows = 4, kColumns = 32;  // of c, held in registers
  for (int64_t j = 0; j < n; j += kColumns) {
    int64_t columns = std::min(kColumns, n - j);
    for (int64_t i = 0; i < m; i += kRows) {
      int64_t rows = std::min(kRows, m - i);
      if (rows == kRows && columns == kColumns) {
        float sum[kRows][kColumns] = {};
        for (int64_t p = 0; p < k; ++p) {
          for (int64_t r = 0; r < kRows; ++r) {
            float factor = a[(i + r) * a_row + p * a_column];
#pragma omp simd
            for (int64_t s = 0; s < kColumns; ++s) sum[r][s] += factor * b[p * ldb + j + s];
          }
        }
        for (int64_t r = 0; r < kRows; ++r)
          for (int64_t s = 0; s < kColumns; ++s) c[(i + r) * ldc + j + s] += sum[r][s];
      } else {
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t p = 0; p < k; ++p) {
            float factor = a[(i + r) * a_row + p * a_column];
            for (int64_t s = 0; s < columns; ++s)
              c[(i + r) * ldc + j + s] += factor * b[p * ldb + j + s];
          }
      }
    }
  }
}

}  // namespace llmc
