// The part of CUDA C++ that the kernels use, for a host compiler. See machine.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator/machine.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

#define threadIdx (::llmc::emulator::thread->index)
#define blockIdx (::llmc::emulator::block->index)
#define blockDim (::llmc::emulator::block->size)
#define gridDim (::llmc::emulator::block->grid)

using dim3 = llmc::emulator::Dim3;

// Memory of any type is read and written as these.
struct __attribute__((may_alias, aligned(8))) float2 {
  float x, y;
};
struct __attribute__((may_alias, aligned(16))) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline void __syncthreads() {
  const dim3& size = blockDim;
  int threads = static_cast<int>(size.x * size.y * size.z);
  // The hardware counts whole warps.
  llmc::emulator::BarrierSync(0, (threads + 31) / 32 * 32 == threads ? threads : -1);
}

namespace llmc::emulator {

inline void CheckMask(unsigned mask) {
  if (mask != 0xffffffffu) Fail("only whole warps can be emulated");
}

// Lane `from` of the warp's value, for each lane.
template <typename T>
T Shuffle(T value, int from) {
  struct Exchange {
    T value, result;
    int from;
  } mine = {value, value, from};
  InWarp("shfl", mine, [](Exchange** lanes) {
    for (int i = 0; i < kWarp; ++i) lanes[i]->result = lanes[lanes[i]->from & 31]->value;
  });
  return mine.result;
}

}  // namespace llmc::emulator

template <typename T>
T __shfl_sync(unsigned mask, T value, int from) {
  llmc::emulator::CheckMask(mask);
  return llmc::emulator::Shuffle(value, from);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  llmc::emulator::CheckMask(mask);
  return llmc::emulator::Shuffle(value, (llmc::emulator::thread->number & 31) ^ bits);
}
inline void __syncwarp() { llmc::emulator::Shuffle(0, 0); }

// Streaming accesses are accesses.
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
using std::max;
using std::min;

// bfloat16 and float16, rounded to nearest even as the hardware does.
struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(unsigned{x.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16(float x) {
  unsigned bits = __float_as_uint(x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline float __half2float(__half x) {
  unsigned sign = x.bits >> 15, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  float value = exponent == 0    ? std::ldexp(float(fraction), -24)
                : exponent == 31 ? (fraction ? NAN : INFINITY)
                                 : std::ldexp(float(fraction | 1024), int(exponent) - 25);
  return sign ? -value : value;
}
inline __half __float2half(float x) {
  unsigned sign = __float_as_uint(x) >> 31;
  float size = std::fabs(x);
  unsigned bits;
  if (x != x) {
    bits = 0x7fff;
  } else if (size >= 65520) {
    bits = 0x7c00;
  } else {
    // the spacing of float16 numbers near x; nearbyint rounds to even
    int exponent = std::max(size > 0 ? std::ilogb(size) : -14, -14);
    float units = std::nearbyint(std::ldexp(size, 10 - exponent));
    bits = static_cast<unsigned>(units) + static_cast<unsigned>(exponent + 14) * 1024;
  }
  return {static_cast<uint16_t>(bits | sign << 15)};
}
