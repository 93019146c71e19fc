// AMX for processors without it: the tile instructions of <immintrin.h> as functions, so that the
// kernels of isa_amx.cc can be tested on any machine with AVX-512 (tests/CMakeLists.txt).
//
// As the processor does (Intel 64 and IA-32 SDM, volume 2): a tile has the rows and bytes of the
// configuration, a load clears what is beyond them, and without a configuration, or with operands
// whose sizes do not fit together, the instruction is invalid and the program stops. Products are
// added up in its order and with its rounding, without subnormal numbers.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulator/bf16.h"

namespace llmc::emulator {

struct Tiles {
  static constexpr int kCount = 8, kRows = 16, kBytes = 64;

  bool configured = false;
  int rows[kCount] = {}, bytes[kCount] = {};
  alignas(64) uint8_t data[kCount][kRows][kBytes];

  void Require(bool condition, const char* what) const {
    if (configured && condition) return;
    std::fprintf(stderr, "invalid tile instruction: %s\n", configured ? what : "no configuration");
    std::abort();
  }
  void Clear(int tile) { std::memset(data[tile], 0, sizeof data[tile]); }
};

inline Tiles& ThisThreads() {
  thread_local Tiles tiles;
  return tiles;
}

inline void TileLoadConfig(const void* memory) {
  auto* config = static_cast<const uint8_t*>(memory);
  Tiles& t = ThisThreads();
  t.configured = true;
  t.Require(config[0] == 1 && config[1] == 0, "palette is not 1 or a start row is given");
  for (int tile = 0; tile < Tiles::kCount; ++tile) {
    uint16_t bytes;
    std::memcpy(&bytes, config + 16 + 2 * tile, sizeof bytes);
    t.bytes[tile] = bytes, t.rows[tile] = config[48 + tile];
    t.Require(bytes <= Tiles::kBytes && t.rows[tile] <= Tiles::kRows, "a tile is too large");
    t.Clear(tile);
  }
  for (int byte = 2; byte < 64; ++byte) {
    const bool reserved = byte < 16 || (32 <= byte && byte < 48) || 56 <= byte;
    t.Require(!reserved || config[byte] == 0, "a reserved byte of the configuration is not 0");
  }
}

inline void TileRelease() { ThisThreads().configured = false; }

inline void TileZero(int tile) {
  Tiles& t = ThisThreads();
  t.Require(t.rows[tile] > 0, "the tile is not configured");
  t.Clear(tile);
}

inline void TileLoad(int tile, const void* memory, int64_t stride) {
  TileZero(tile);
  Tiles& t = ThisThreads();
  for (int row = 0; row < t.rows[tile]; ++row)
    std::memcpy(t.data[tile][row], static_cast<const uint8_t*>(memory) + row * stride,
                t.bytes[tile]);
}

inline void TileStore(int tile, void* memory, int64_t stride) {
  Tiles& t = ThisThreads();
  t.Require(t.rows[tile] > 0, "the tile is not configured");
  for (int row = 0; row < t.rows[tile]; ++row)
    std::memcpy(static_cast<uint8_t*>(memory) + row * stride, t.data[tile][row], t.bytes[tile]);
}

// sum (M,N) += a (M,K) b (K,N), whose words are pairs of bfloat16: first and second halves are
// summed apart, by fused multiply-adds, then both are added.
inline void TileDotBf16(int sum, int a, int b) {
  Tiles& t = ThisThreads();
  const int M = t.rows[sum], N = t.bytes[sum] / 4, K = t.bytes[a] / 4;
  t.Require(t.rows[a] == M && t.rows[b] == K && t.bytes[b] / 4 == N, "sizes do not fit");
  const auto columns = static_cast<__mmask16>((1u << N) - 1);
  auto upper = [](__m512i words) { return _mm512_castsi512_ps(words); };
  const unsigned control = _mm_getcsr();
  _mm_setcsr((control & ~_MM_ROUND_MASK) | _MM_FLUSH_ZERO_ON | 0x40);  // 0x40: denormals are zeros
  for (int m = 0; m < M; ++m) {
    __m512 first = _mm512_setzero_ps(), second = first;
    for (int k = 0; k < K; ++k) {
      uint32_t pair;
      std::memcpy(&pair, &t.data[a][m][4 * k], sizeof pair);
      const __m512i x = _mm512_set1_epi32(static_cast<int>(pair));
      const __m512i y = _mm512_load_si512(t.data[b][k]);
      const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
      first = _mm512_fmadd_ps(upper(_mm512_slli_epi32(x, 16)), upper(_mm512_slli_epi32(y, 16)),
                              first);
      second = _mm512_fmadd_ps(upper(_mm512_and_si512(x, high)), upper(_mm512_and_si512(y, high)),
                               second);
    }
    const __m512 row = _mm512_load_ps(t.data[sum][m]), both = _mm512_add_ps(first, second);
    _mm512_store_ps(t.data[sum][m], _mm512_mask_add_ps(row, columns, row, both));
  }
  _mm_setcsr(control);
}

}  // namespace llmc::emulator

#define _tile_loadconfig llmc::emulator::TileLoadConfig
#define _tile_release llmc::emulator::TileRelease
#undef _tile_zero
#define _tile_zero llmc::emulator::TileZero
#undef _tile_loadd
#define _tile_loadd llmc::emulator::TileLoad
#undef _tile_stream_loadd
#define _tile_stream_loadd llmc::emulator::TileLoad
#undef _tile_stored
#define _tile_stored llmc::emulator::TileStore
#undef _tile_dpbf16ps
#define _tile_dpbf16ps llmc::emulator::TileDotBf16
