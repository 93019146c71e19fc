// The micro kernels of AMX: see micro.h for what they are to have.
#pragma once

#include "cpu/parts.h"

namespace llmc::LLMC_ISA {

// The tile registers: 16 rows of 64 bytes each, eight of them. Four hold a (32,32) tile of C, two
// hold a, two hold b, and each product of two makes 8,192 multiply-adds.
struct TileRegisters {
  static constexpr int kMR = 32, kNR = 32;
  static constexpr bool kTiles = true;
  using Form = Pairs;

  // Sets them up on this thread, and gives them back so that the kernel need not save them at each
  // switch of threads.
  struct Scope {
    Scope() {
      struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
      } config;
      // g++ 12 thinks that _tile_loadconfig reads 8 bytes, and leaves the others unwritten
      __asm__ volatile("" ::"r"(&config) : "memory");
      _tile_loadconfig(&config);
    }
    ~Scope() { _tile_release(); }
  };

 protected:
  static constexpr int kTileWords = 16 * 16;

  [[gnu::always_inline]] static void Begin(const float* c, int64_t ldc, bool accumulate) {
    const int64_t stride = ldc * sizeof(float);
    // g++ does not know that _tile_loadd reads memory: nothing stored before may come after
    __asm__ volatile("" ::: "memory");
    if (accumulate) {
      _tile_loadd(0, c, stride);
      _tile_loadd(1, c + 16, stride);
      _tile_loadd(2, c + 16 * ldc, stride);
      _tile_loadd(3, c + 16 * ldc + 16, stride);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  // 32 rows of 16 words; 16 steps of 32 columns, past the first-level cache where it `passes`.
  [[gnu::always_inline]] static void LoadA(const uint32_t* a) {
    _tile_loadd(4, a, 64);
    _tile_loadd(5, a + kTileWords, 64);
  }
  template <bool passes>
  [[gnu::always_inline]] static void LoadB(const uint32_t* b) {
    if constexpr (passes) {
      _tile_stream_loadd(6, b, kNR * 4);
      _tile_stream_loadd(7, b + 16, kNR * 4);
    } else {
      _tile_loadd(6, b, kNR * 4);
      _tile_loadd(7, b + 16, kNR * 4);
    }
  }
  // Both. The second half of a comes last, as it is needed last: 1 to 3 % of a product.
  template <bool passes>
  [[gnu::always_inline]] static void LoadBoth(const uint32_t* a, const uint32_t* b) {
    _tile_loadd(4, a, 64);
    LoadB<passes>(b);
    _tile_loadd(5, a + kTileWords, 64);
  }
  [[gnu::always_inline]] static void AddProducts() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  [[gnu::always_inline]] static void End(float* c, int64_t ldc) {
    const int64_t stride = ldc * sizeof(float);
    _tile_stored(0, c, stride);
    _tile_stored(1, c + 16, stride);
    _tile_stored(2, c + 16 * ldc, stride);
    _tile_stored(3, c + 16 * ldc + 16, stride);
    __asm__ volatile("" ::: "memory");
  }
};

// Panels of pairs for the tile registers.
struct TilePanels : TileRegisters {
  static constexpr int kUnit = 16, kDepth = 32, kTurns = 1;

  template <typename T>
  static void PackA(const Operand<T>& a, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackRows<kMR>(Pairs{}, a, rows, K, steps, out);
  }
  template <typename T>
  static void PackB(const Operand<T>& b, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackSteps<kNR>(Pairs{}, b, rows, K, steps, out);
  }

  template <bool accumulate>
  static void Micro(int64_t steps, const uint32_t* a, const uint32_t* b, float* c, int64_t ldc,
                    const uint32_t* next) {
    Multiply<false>(steps, a, b, c, ldc, accumulate, /*backwards=*/false, [&] {
      for (int line = 0; line < 4; ++line, next += 16)
        _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
    });
  }

  // The same, from the last step to the first where `backwards`. What meanwhile() does with vectors
  // costs less than after them: the processor does it beside the products, which take 16 cycles
  // each, or 64 where their power is held down, and leave the vector units idle.
  //
  // Where `b_passes`, panels of b go past the first-level cache, where a panel of a remains that is
  // multiplied with several of them. If that is larger than the cache, there is still its last
  // part, with which the next call begins if it goes the other way.
  template <bool b_passes, typename Meanwhile>
  [[gnu::always_inline]] static void Multiply(int64_t steps, const uint32_t* a, const uint32_t* b,
                                              float* c, int64_t ldc, bool accumulate,
                                              bool backwards, const Meanwhile& meanwhile) {
    const int64_t group = kUnit * kMR, step = backwards ? -group : group;
    if (backwards) a += (steps - kUnit) * kMR, b += (steps - kUnit) * kNR;
    Begin(c, ldc, accumulate);
    for (int64_t s = 0; s < steps; s += kUnit, a += step, b += step) {
      LoadBoth<b_passes>(a, b);
      AddProducts();
      meanwhile();
    }
    End(c, ldc);
  }
};

// Panels of floats in parts, for the tile registers: with a = a0 + a1 + a2 and b alike, each part
// 2^-8 of the one before or less, the products of parts i and j with i + j <= 2 are a b to 2^-23 at
// worst and mostly to 2^-27, where a float is rounded by 2^-24 (Henry et al. 2019,
// arXiv:1904.06376). There are six, which take half of the time of multiplying floats by vectors.
struct PartPanels : TileRegisters {
  static constexpr int kUnit = kParts * 16, kDepth = 32, kTurns = 6;
  static_assert(kMR == kNR, "groups of a and of b are of one size");

  template <typename T>
  static void PackA(const Operand<T>& a, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackParts<kMR, /*as_rows=*/true>(a, rows, K, steps, out);
  }
  template <typename T>
  static void PackB(const Operand<T>& b, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackParts<kNR, /*as_rows=*/false>(b, rows, K, steps, out);
  }

  // As TilePanels'. The smallest products of a group come first, but for the last of three with a0,
  // and from one to the next only one side is loaded.
  template <bool b_passes, typename Meanwhile>
  [[gnu::always_inline]] static void Multiply(int64_t steps, const uint32_t* a, const uint32_t* b,
                                              float* c, int64_t ldc, bool accumulate,
                                              bool backwards, const Meanwhile& meanwhile) {
    constexpr int64_t kPart = 16 * kMR;  // words
    const int64_t group = kUnit * kMR, step = backwards ? -group : group;
    if (backwards) a += (steps - kUnit) * kMR, b += (steps - kUnit) * kNR;
    Begin(c, ldc, accumulate);
    for (int64_t s = 0; s < steps; s += kUnit, a += step, b += step) {
      LoadBoth<false>(a + 2 * kPart, b);
      AddProducts();
      meanwhile();
      LoadA(a + kPart);
      AddProducts();
      meanwhile();
      LoadB<b_passes>(b + kPart);
      AddProducts();
      meanwhile();
      LoadA(a);
      AddProducts();
      meanwhile();
      LoadB<b_passes>(b);
      AddProducts();
      meanwhile();
      LoadB<b_passes>(b + 2 * kPart);
      AddProducts();
      meanwhile();
    }
    End(c, ldc);
  }
};

}  // namespace llmc::LLMC_ISA
