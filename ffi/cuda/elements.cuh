// What the kernels that are bound by memory share: several numbers at once or, where the layout
// does not allow that, one; sums over a block; how much shared memory there is.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/ptx.cuh"

namespace llmc::cuda {

// In the place of a Vec where numbers are not aligned to 16 bytes.
template <typename T>
struct One {
  static constexpr int kSize = 1;
  T at[1];

  __device__ static One Load(const T* from) { return {*from}; }
  __device__ static One LoadStreaming(const T* from) { return {*from}; }
  __device__ void Store(T* to) const { *to = at[0]; }
  __device__ void StoreStreaming(T* to) const { *to = at[0]; }
};

template <typename Vector>
__device__ inline void ToFloats(float (&x)[Vector::kSize], const Vector& vector) {
#pragma unroll
  for (int k = 0; k < Vector::kSize; ++k) x[k] = ToFloat(vector.at[k]);
}

template <typename Vector>
__device__ inline Vector FromFloats(const float (&x)[Vector::kSize]) {
  using T = std::decay_t<decltype(Vector::at[0])>;
  Vector result;
  if constexpr (sizeof(T) == 2 && Vector::kSize > 1) {
#pragma unroll
    for (int k = 0; k < Vector::kSize; k += 2) {
      uint32_t pair = ptx::Pack<T>(x[k], x[k + 1]);
      memcpy(&result.at[k], &pair, sizeof(pair));
    }
  } else {
#pragma unroll
    for (int k = 0; k < Vector::kSize; ++k) result.at[k] = FromFloat<T>(x[k]);
  }
  return result;
}

// float32 numbers beside a vector of kSize others, 16 bytes at once where there are as many.
template <int kSize>
__device__ inline void LoadFloats(float (&x)[kSize], const float* from) {
  using Part = std::conditional_t<kSize % 4 == 0, Vec<float>, One<float>>;
#pragma unroll
  for (int k = 0; k < kSize; k += Part::kSize) {
    auto part = Part::Load(from + k);
#pragma unroll
    for (int i = 0; i < Part::kSize; ++i) x[k + i] = part.at[i];
  }
}
// The same from bfloat16, which are aligned to kSize of them.
template <int kSize>
__device__ inline void LoadFloats(float (&x)[kSize], const bf16* from) {
  struct alignas(2 * kSize) Halves {
    uint16_t at[kSize];
  } halves = *reinterpret_cast<const Halves*>(from);
#pragma unroll
  for (int k = 0; k < kSize; ++k) x[k] = __uint_as_float(unsigned{halves.at[k]} << 16);
}
template <int kSize>
__device__ inline void StoreFloats(const float (&x)[kSize], float* to) {
  using Part = std::conditional_t<kSize % 4 == 0, Vec<float>, One<float>>;
#pragma unroll
  for (int k = 0; k < kSize; k += Part::kSize) {
    Part part;
#pragma unroll
    for (int i = 0; i < Part::kSize; ++i) part.at[i] = x[k + i];
    part.Store(to + k);
  }
}

// Like BlockSum.
__device__ inline float BlockMax(float x, float* room) {
  int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  int warps = blockDim.x / kWarpSize;
  x = WarpMax(x);
  if (lane == 0) room[warp] = x;
  __syncthreads();
  return WarpMax(room[lane < warps ? lane : 0]);
}

__host__ __device__ inline bool Aligned16(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// first[c] = sum over rows of partials[row][c] and, unless null, second[c] of
// partials[row][width + c]: partials.cu.
Status AddPartials(Stream stream, const float* partials, int rows, int width, float* first,
                   float* second);

}  // namespace llmc::cuda
