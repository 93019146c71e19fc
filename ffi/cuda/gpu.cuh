// What every kernel file includes: CUDA or its emulation, number types, launches.
#pragma once

#include "cuda/kernels.h"

#ifdef LLMC_EMULATED
#include "emulator/cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace llmc::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarpSize = 32;
constexpr float kLog2E = 1.4426950408889634f;  // e^x = 2^(kLog2E x)

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(bf16 x) { return __bfloat162float(x); }
__device__ inline float ToFloat(f16 x) { return __half2float(x); }

template <typename T>
__device__ inline T FromFloat(float x);
template <>
__device__ inline float FromFloat<float>(float x) { return x; }
template <>
__device__ inline bf16 FromFloat<bf16>(float x) { return __float2bfloat16(x); }
template <>
__device__ inline f16 FromFloat<f16>(float x) { return __float2half(x); }

// As many numbers as a thread loads or stores at once: 16 bytes.
template <typename T>
struct alignas(16) Vec {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];

  __device__ static Vec Load(const T* from) { return *reinterpret_cast<const Vec*>(from); }
  __device__ void Store(T* to) const { *reinterpret_cast<Vec*>(to) = *this; }

  // For what is used once and not again soon: leaves the caches to others.
  __device__ static Vec LoadStreaming(const T* from) {
    Vec result;
    *reinterpret_cast<uint4*>(&result) = __ldcs(reinterpret_cast<const uint4*>(from));
    return result;
  }
  __device__ void StoreStreaming(T* to) const {
    __stcs(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(this));
  }
};

__device__ inline float WarpSum(float x) {
  for (int bit = kWarpSize / 2; bit > 0; bit /= 2) x += __shfl_xor_sync(kAllLanes, x, bit);
  return x;
}
__device__ inline float WarpMax(float x) {
  for (int bit = kWarpSize / 2; bit > 0; bit /= 2)
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, bit));
  return x;
}

// The sum over the threads of a block, for all of them, in an order that does not change; `room`:
// shared memory for a number a warp, free again after the next barrier.
__device__ inline float BlockSum(float x, float* room) {
  int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  int warps = blockDim.x / kWarpSize;
  x = WarpSum(x);
  if (lane == 0) room[warp] = x;
  __syncthreads();
  return WarpSum(lane < warps ? room[lane] : 0.0f);
}

// The block's dynamic shared memory as a T. Kernels have no other, so that all of it is checked.
template <typename T>
__device__ inline T& SharedMemory() {
#ifdef LLMC_EMULATED
  if (sizeof(T) > emulator::block->shared_size) emulator::Fail("too little shared memory");
  return *reinterpret_cast<T*>(emulator::block->shared);
#else
  extern __shared__ __align__(1024) unsigned char llmc_shared_memory[];
  return *reinterpret_cast<T*>(llmc_shared_memory);
#endif
}

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Has llmc_cuda_load load a kernel: load.cu.
#ifdef LLMC_EMULATED
inline void Register(const void*) {}
#else
void Register(const void* kernel);
#endif

// What Launch takes.
template <typename... Params>
struct Launchable {
  void (*function)(Params...);

  explicit Launchable(void (*kernel)(Params...)) : function(kernel) {
    Register(reinterpret_cast<const void*>(kernel));
  }
};

// A kernel to launch. To name it is to register it: all variables of this are made as the library
// is opened, so that no kernel can be launched that llmc_cuda_load does not know.
template <auto kFunction>
const Launchable Kernel{kFunction};

#ifdef LLMC_EMULATED

template <typename... Params, typename... Args>
Status Launch(const Launchable<Params...>& kernel, dim3 grid, dim3 threads, size_t shared, Stream,
              const Args&... args) {
  emulator::Run(grid, threads, shared, [&] { kernel.function(static_cast<Params>(args)...); });
  return {};
}

inline int Architecture() { return emulator::Architecture(); }
inline int SharedMemoryLimit() { return emulator::SharedMemoryLimit(); }
inline int Multiprocessors() { return 3; }

#else

inline Status ToStatus(cudaError_t error) {
  return {error == cudaSuccess ? nullptr : cudaGetErrorString(error)};
}

template <typename... Params, typename... Args>
Status Launch(const Launchable<Params...>& kernel, dim3 grid, dim3 threads, size_t shared,
              Stream stream, const Args&... args) {
  if (shared > 48 * 1024) {
    cudaError_t error = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel.function), cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(shared));
    if (error != cudaSuccess) {
      cudaGetLastError();  // or the next launch would report it
      return ToStatus(error);
    }
  }
  kernel.function<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(
      static_cast<Params>(args)...);
  return ToStatus(cudaGetLastError());
}

// Of the device in use.
inline int Attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

// Its compute capability, as 80 for 8.0.
inline int Architecture() {
  return 10 * Attribute(cudaDevAttrComputeCapabilityMajor) +
         Attribute(cudaDevAttrComputeCapabilityMinor);
}

// Bytes of shared memory that a block may have.
inline int SharedMemoryLimit() { return Attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

// A grid of as many blocks, or fewer, has each on its own.
inline int Multiprocessors() { return Attribute(cudaDevAttrMultiProcessorCount); }

#endif

}  // namespace llmc::cuda
