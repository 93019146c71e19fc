// The PTX instructions the kernels use, from sm_80 on, as functions; emulator/ptx.h has what each
// of them does on the host. What only Hopper has is in hopper.cuh.
//
// Fragments are as PTX lays them out for mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma"): with
// g = lane / 4 and t = lane % 4, and a register holding two numbers of 16 bits,
//   a (16 x 16): a[0] row g, columns 2t 2t+1; a[1] row g+8; a[2], a[3] the same at columns 8 + 2t
//   b (16 x 8):  b[0] rows 2t 2t+1 of column g; b[1] the same at rows 8 + 2t
//   c (16 x 8):  c[0] c[1] row g, columns 2t 2t+1; c[2] c[3] row g+8
#pragma once

#include "cuda/gpu.cuh"

#ifdef LLMC_EMULATED
#include "emulator/ptx.h"
#else

namespace llmc::cuda::ptx {

// An address in shared memory as the instructions take it; the start of a block's memory is a
// multiple of 1024.
__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// 2^x, to 2 units in the last place.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two numbers as a register of a fragment, `low` in the lower half.
template <typename T>
__device__ inline uint32_t Pack(float low, float high);
template <>
__device__ inline uint32_t Pack<bf16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <>
__device__ inline uint32_t Pack<f16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// Four 8 x 8 matrices of 16 bit numbers: lane l gives the address in shared memory of row l % 8 of
// matrix l / 8 (16 bytes, aligned), and gets of matrix i, as r[i], columns 2t 2t+1 of row g.
__device__ inline void LoadMatrix4(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
__device__ inline void LoadMatrix4(uint32_t (&r)[4], const void* row) {
  LoadMatrix4(r, SharedAddress(row));
}

// The same of the matrices transposed: r[i] is rows 2t 2t+1 of column g.
__device__ inline void LoadMatrix4Transposed(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
__device__ inline void LoadMatrix4Transposed(uint32_t (&r)[4], const void* row) {
  LoadMatrix4Transposed(r, SharedAddress(row));
}

// c += a b; see the top of the file.
template <typename T>
__device__ inline void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void Mma<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void Mma<f16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Stores two numbers of 16 bits at an address in shared memory.
__device__ inline void StoreShared(uint32_t shared, uint32_t both) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared), "r"(both) : "memory");
}

// Starts to copy 16 bytes from global to shared memory; zeros where not `valid`, and then `global`
// is not read.
__device__ inline void CopyAsync16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
// The same of 4 bytes.
__device__ inline void CopyAsync4(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(valid ? 4 : 0)
               : "memory");
}
// Closes a group of copies; waits until at most the last `kBut` groups of this thread are under
// way. What other threads copied is there after the next barrier.
__device__ inline void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kBut>
__device__ inline void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kBut) : "memory");
}

// sum[0] += x and sum[1] += y in global memory, aligned to 8 bytes.
__device__ inline void AtomicAdd2(float* sum, float x, float y) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(sum), "f"(x), "f"(y) : "memory");
#else
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(sum), "f"(x) : "memory");
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(sum + 1), "f"(y) : "memory");
#endif
}

}  // namespace llmc::cuda::ptx

#endif
