// The L2 norm of all gradients together (llm.c global_norm.cuh).
//
// Each block adds the squares of its share of an array to a number of its own, and a last block
// adds those: no atomics, so the same bits every time. Sums are float32, a thread's share of them
// small.
#include "cuda/elements.cuh"

namespace llmc::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kArraysPerLaunch = 32;  // all that CUDA's 4 KiB of kernel arguments must hold

struct Arrays {
  int count;
  Gradient at[kArraysPerLaunch];
};

struct Shared {
  float room[kWarpSize];
};

// Adds to sum the squares of this thread's share of an array of T.
template <typename T>
__device__ inline void AddSquares(const Gradient& array, float& sum) {
  constexpr int kVec = Vec<T>::kSize;
  auto* data = static_cast<const T*>(array.data);
  int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  int64_t stride = int64_t{gridDim.x} * kThreads;
  int64_t vecs = Aligned16(data) ? array.size / kVec : 0;
  for (int64_t i = first; i < vecs; i += stride) {
    float x[kVec];
    ToFloats(x, Vec<T>::Load(data + i * kVec));
#pragma unroll
    for (int k = 0; k < kVec; ++k) sum += x[k] * x[k];
  }
  // the rest: less than a vector, or all that is not aligned to one
  for (int64_t i = vecs * kVec + first; i < array.size; i += stride)
    sum += ToFloat(data[i]) * ToFloat(data[i]);
}

// partials[blockIdx.x] (+)= sum over this block's shares of the arrays.
__global__ void __launch_bounds__(kThreads) SumOfSquares(Arrays arrays, float* partials, bool add) {
  float sum = 0;
  for (int a = 0; a < arrays.count; ++a) {
    const Gradient& array = arrays.at[a];
    if (array.half)
      AddSquares<bf16>(array, sum);
    else
      AddSquares<float>(array, sum);
  }
  sum = BlockSum(sum, SharedMemory<Shared>().room);
  if (threadIdx.x == 0) partials[blockIdx.x] = add ? partials[blockIdx.x] + sum : sum;
}

__global__ void __launch_bounds__(kNormPartials) RootOfSum(const float* partials, float* norm) {
  float sum = BlockSum(partials[threadIdx.x], SharedMemory<Shared>().room);
  if (threadIdx.x == 0) norm[0] = sqrtf(sum);
}

}  // namespace

Status GlobalNorm(Stream stream, int count, const Gradient* grads, float* partials, float* norm) {
  int begin = 0;
  do {
    Arrays part = {};
    for (; part.count < kArraysPerLaunch && begin + part.count < count; ++part.count)
      part.at[part.count] = grads[begin + part.count];
    Status status = Launch(Kernel<SumOfSquares>, kNormPartials, kThreads, sizeof(Shared), stream,
                           part, partials, /*add=*/begin > 0);
    if (!status.ok()) return status;
    begin += part.count;
  } while (begin < count);
  return Launch(Kernel<RootOfSum>, 1, kNormPartials, sizeof(Shared), stream, partials, norm);
}

}  // namespace llmc::cuda
