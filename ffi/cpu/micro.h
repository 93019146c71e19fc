// Micro kernels: the product of two panels in registers, for each instruction set, which is all
// that gemm.h and attention.h need to know of it.
#pragma once

#include "cpu/pack.h"
#if defined(__AMX_BF16__)
#include "cpu/tiles.h"
#endif

namespace llmc::LLMC_ISA {

// What an instruction set does for one form of panels:
//   kMR, kNR   rows and columns of a tile of C
//   kUnit      steps of a panel are a multiple of it; they hold kDepth elements of K
//   PackA, PackB
//   Scope      a constructor and destructor around the work of one task
//   Micro      c (kMR,kNR) = or += a b over `steps`; rows of c are ldc floats apart. `next` is
//              what will be read soon: it may be fetched meanwhile
//   kTiles     whether these are the tile registers: then rows of A lie in a panel as they are,
//              and a product is made faster than its result is written and read again. And then
//              Multiply does what Micro does, and something else meanwhile: kTurns times in kUnit
//              steps

// Panels of floats and fused multiply-adds.
struct FloatPanels {
#if defined(__AVX512F__)
  static constexpr int kMR = 8, kNV = 3;  // 24 sums, 3 of b and 1 of a: 28 of 32 registers
#elif defined(__AVX2__)
  static constexpr int kMR = 4, kNV = 3;  // 12 sums, 3 of b and 1 of a: 16 registers
#elif defined(__aarch64__)
  static constexpr int kMR = 4, kNV = 4;  // 16 sums: four pipes and four cycles want as many
#else
  static constexpr int kMR = 4, kNV = 2;  // 8 sums, 2 of b and 1 of a: 11 of 16 registers
#endif
  static constexpr int kNR = kNV * kLanes, kUnit = 1, kDepth = 1;
  static constexpr bool kTiles = false;
  using Form = Floats;

  template <typename T>
  static void PackA(const Operand<T>& a, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackSteps<kMR>(Floats{}, a, rows, K, steps, out);
  }
  template <typename T>
  static void PackB(const Operand<T>& b, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackSteps<kNR>(Floats{}, b, rows, K, steps, out);
  }

  struct Scope {};

  // Not inlined: in a larger function g++ 12 has no registers left for the sums.
  template <bool accumulate>
  [[gnu::noinline]] static void Micro(int64_t steps, const uint32_t* a_words,
                                      const uint32_t* b_words, float* c, int64_t ldc,
                                      const uint32_t* /*next*/) {
    auto* a = reinterpret_cast<const float*>(a_words);
    auto* b = reinterpret_cast<const float*>(b_words);
    Vec sum[kMR][kNV];
#pragma GCC unroll 8
    for (int r = 0; r < kMR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kNV; ++v) sum[r][v] = Vec{};
    for (int64_t s = 0; s < steps; ++s, a += kMR, b += kNR) {
      Vec columns[kNV];
#pragma GCC unroll 4
      for (int v = 0; v < kNV; ++v) columns[v] = Load(b + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kMR; ++r) {
        Vec row = Broadcast(a[r]);
#pragma GCC unroll 4
        for (int v = 0; v < kNV; ++v) sum[r][v] = row * columns[v] + sum[r][v];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kMR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kNV; ++v) {
        // the block's sum is made first: a sum of blocks rounds less than one long sum
        float* at = c + r * ldc + v * kLanes;
        Store(at, accumulate ? Load(at) + sum[r][v] : sum[r][v]);
      }
  }
};

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
// Panels of pairs and vdpbf16ps, which adds both products of a pair to a float.
struct PairPanels {
  static constexpr int kMR = 8, kNV = 3, kNR = kNV * kLanes, kUnit = 1, kDepth = 2;
  static constexpr bool kTiles = false;
  using Form = Pairs;

  template <typename T>
  static void PackA(const Operand<T>& a, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackSteps<kMR>(Pairs{}, a, rows, K, steps, out);
  }
  template <typename T>
  static void PackB(const Operand<T>& b, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackSteps<kNR>(Pairs{}, b, rows, K, steps, out);
  }

  struct Scope {};

  template <bool accumulate>
  [[gnu::noinline]] static void Micro(int64_t steps, const uint32_t* a, const uint32_t* b,
                                      float* c, int64_t ldc, const uint32_t* /*next*/) {
    __m512 sum[kMR][kNV];
#pragma GCC unroll 8
    for (int r = 0; r < kMR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kNV; ++v)
        sum[r][v] = accumulate ? _mm512_loadu_ps(c + r * ldc + v * 16) : _mm512_setzero_ps();
    for (int64_t s = 0; s < steps; ++s, a += kMR, b += kNR) {
      __m512bh columns[kNV];
#pragma GCC unroll 4
      for (int v = 0; v < kNV; ++v) columns[v] = (__m512bh)_mm512_loadu_si512(b + v * 16);
#pragma GCC unroll 8
      for (int r = 0; r < kMR; ++r) {
        __m512bh row = (__m512bh)_mm512_set1_epi32(a[r]);
#pragma GCC unroll 4
        for (int v = 0; v < kNV; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], row, columns[v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kMR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kNV; ++v) _mm512_storeu_ps(c + r * ldc + v * 16, sum[r][v]);
  }
};
using HalfPanels = PairPanels;

#elif defined(__AMX_BF16__)
using HalfPanels = TilePanels;

#else
using HalfPanels = FloatPanels;  // bfloat16 becomes float when it is packed
#endif

// Those of Gemm, for a product made in type T.
template <typename T>
struct PanelsOf;
template <>
struct PanelsOf<float> {
#if defined(__AMX_BF16__)
  using Type = PartPanels;
#else
  using Type = FloatPanels;
#endif
};
template <>
struct PanelsOf<BF16> {
  using Type = HalfPanels;
};

}  // namespace llmc::LLMC_ISA
