// The L2 norm of all gradients together (llm.c global_norm.cuh).
//
// Each block adds the squares of its share of an array to a number of its own, and a last block
// adds those: no atomics, so the same bits every time. Sums are float32, a thread's share of them
// small.
#include "cuda/gpu.cuh"

namespace llmc::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kArraysPerLaunch = 32;  // all that CUDA's 4 KiB of kernel arguments must hold

struct Arrays {
  int count;
  const float* data[kArraysPerLaunch];
  int64_t size[kArraysPerLaunch];
};

struct Shared {
  float room[kWarpSize];
};

// partials[blockIdx.x] (+)= sum over this block's shares of the arrays.
__global__ void __launch_bounds__(kThreads) SumOfSquares(Arrays arrays, float* partials, bool add) {
  constexpr int kVec = Vec<float>::kSize;
  int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  int64_t stride = int64_t{gridDim.x} * kThreads;
  float sum = 0;
  for (int a = 0; a < arrays.count; ++a) {
    const float* data = arrays.data[a];
    int64_t vecs = arrays.size[a] / kVec;
    for (int64_t i = first; i < vecs; i += stride) {
      auto x = Vec<float>::Load(data + i * kVec);
      for (int k = 0; k < kVec; ++k) sum += x.at[k] * x.at[k];
    }
    int64_t tail = vecs * kVec + first;
    if (tail < arrays.size[a]) sum += data[tail] * data[tail];
  }
  sum = BlockSum(sum, SharedMemory<Shared>().room);
  if (threadIdx.x == 0) partials[blockIdx.x] = add ? partials[blockIdx.x] + sum : sum;
}

__global__ void __launch_bounds__(kNormPartials) RootOfSum(const float* partials, float* norm) {
  float sum = BlockSum(partials[threadIdx.x], SharedMemory<Shared>().room);
  if (threadIdx.x == 0) norm[0] = sqrtf(sum);
}

}  // namespace

Status GlobalNorm(Stream stream, int count, const float* const* arrays, const int64_t* sizes,
                  float* partials, float* norm) {
  int begin = 0;
  do {
    Arrays part = {};
    for (; part.count < kArraysPerLaunch && begin + part.count < count; ++part.count) {
      part.data[part.count] = arrays[begin + part.count];
      part.size[part.count] = sizes[begin + part.count];
    }
    Status status = Launch(SumOfSquares, kNormPartials, kThreads, sizeof(Shared), stream, part,
                           partials, /*add=*/begin > 0);
    if (!status.ok()) return status;
    begin += part.count;
  } while (begin < count);
  return Launch(RootOfSum, 1, kNormPartials, sizeof(Shared), stream, partials, norm);
}

}  // namespace llmc::cuda
