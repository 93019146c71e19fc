// What the instructions of cuda/ptx.cuh do, on the host.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

namespace llmc::cuda::ptx {

inline float Exp2(float x) { return std::exp2(x); }

template <typename T>
T FromBits(uint32_t bits) {
  return {static_cast<uint16_t>(bits)};
}

template <typename T>
uint32_t Pack(float low, float high) {
  return FromFloat<T>(low).bits | uint32_t{FromFloat<T>(high).bits} << 16;
}

// That [p, p + bytes) lies in the block's shared memory, aligned.
inline void CheckShared(const void* p, size_t bytes, size_t alignment) {
  auto* first = static_cast<const unsigned char*>(p);
  const emulator::Block& block = *emulator::block;
  if (first < block.shared || first + bytes > block.shared + block.shared_size)
    emulator::Fail("an address that is not in shared memory");
  if (reinterpret_cast<uintptr_t>(p) % alignment) emulator::Fail("an address that is not aligned");
}

inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(shared) -
                               emulator::block->shared);
}
inline void* AtSharedAddress(uint32_t address) { return emulator::block->shared + address; }

inline void LoadMatrix4(uint32_t (&r)[4], const void* row, bool transposed = false) {
  struct Load {
    const uint16_t* row;
    uint32_t* r;
  } mine = {static_cast<const uint16_t*>(row), r};
  CheckShared(row, 16, 16);
  emulator::InWarp("ldmatrix", mine, [transposed](Load** lanes) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        auto at = [&](int y, int x) { return uint32_t{lanes[8 * i + y]->row[x]}; };
        int g = lane / 4, t = lane % 4;
        lanes[lane]->r[i] = transposed ? at(2 * t, g) | at(2 * t + 1, g) << 16
                                       : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
      }
  });
}
inline void LoadMatrix4Transposed(uint32_t (&r)[4], const void* row) {
  LoadMatrix4(r, row, /*transposed=*/true);
}
inline void LoadMatrix4(uint32_t (&r)[4], uint32_t row) { LoadMatrix4(r, AtSharedAddress(row)); }
inline void LoadMatrix4Transposed(uint32_t (&r)[4], uint32_t row) {
  LoadMatrix4Transposed(r, AtSharedAddress(row));
}

template <typename T>
void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Fragments {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } mine = {c, a, {b0, b1}};
  emulator::InWarp("mma", mine, [](Fragments** lanes) {
    float a[16][16], b[8][16];  // b transposed
    for (int lane = 0; lane < 32; ++lane) {
      int g = lane / 4, t = lane % 4;
      for (int half = 0; half < 2; ++half) {
        int shift = 16 * half;
        for (int i = 0; i < 4; ++i)
          a[g + i % 2 * 8][2 * t + half + i / 2 * 8] =
              ToFloat(FromBits<T>(lanes[lane]->a[i] >> shift));
        for (int i = 0; i < 2; ++i)
          b[g][2 * t + half + i * 8] = ToFloat(FromBits<T>(lanes[lane]->b[i] >> shift));
      }
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
        lanes[lane]->c[i] += sum;
      }
  });
}

inline void StoreShared(uint32_t shared, uint32_t both) {
  CheckShared(AtSharedAddress(shared), 4, 4);
  std::memcpy(AtSharedAddress(shared), &both, 4);
  emulator::Thread& mine = *emulator::thread;
  int& unfenced = emulator::block->unfenced[shared / 4];
  if (unfenced != mine.number + 1) mine.stored.push_back(shared / 4);
  unfenced = mine.number + 1;
}

template <int kBytes>
void CopyAsync(void* shared, const void* global, bool valid) {
  CheckShared(shared, kBytes, kBytes);
  if (valid && reinterpret_cast<uintptr_t>(global) % kBytes)
    emulator::Fail("a copy from an address that is not aligned");
  // cp.async promises nothing until it is waited for: neither the old nor the new contents.
  if (emulator::Schedule()) std::memset(shared, 0xff, kBytes);
  emulator::thread->copies.Add([=] {
    if (valid)
      std::memcpy(shared, global, kBytes);
    else
      std::memset(shared, 0, kBytes);
  });
}
inline void CopyAsync16(void* shared, const void* global, bool valid) {
  CopyAsync<16>(shared, global, valid);
}
inline void CopyAsync4(void* shared, const void* global, bool valid) {
  CopyAsync<4>(shared, global, valid);
}
inline void CopyAsyncCommit() { emulator::thread->copies.Commit(); }
template <int kBut>
void CopyAsyncWait() {
  emulator::thread->copies.Wait(kBut);
}

inline void AtomicAdd2(float* sum, float x, float y) {
  if (reinterpret_cast<uintptr_t>(sum) % 8) emulator::Fail("an address that is not aligned");
  sum[0] += x;
  sum[1] += y;
}

}  // namespace llmc::cuda::ptx
