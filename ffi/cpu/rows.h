// Loops over rows of floats, written so that the compiler vectorises them. Each is compiled for
// several instruction sets and the loader takes the best one the CPU has.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__x86_64__) && defined(__gnu_linux__)
#define LLMC_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
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

// the largest of x, which is not empty
float RowMax(const float* x, int64_t n);

// sum of e^(x - max), max >= every x
float RowSumExp(const float* x, float max, int64_t n);

// out = e^(x - max) * scale; out may be x
void RowExp(const float* x, float max, float scale, int64_t n, float* out);

// c += a b, row-major: c (m,n) with row stride ldc, b (k,n) with row stride ldb,
// a(i,p) = a[i * a_row + p * a_column], so that a may be a transpose.
void MatmulAdd(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, int64_t a_column,
               const float* b, int64_t ldb, float* c, int64_t ldc);

}  // namespace llmc
