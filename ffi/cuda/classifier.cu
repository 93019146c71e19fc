// Cross-entropy of given logits and, in their place, its gradient (llm.c fused_classifier.cuh).
//
//   loss = logsumexp(x[:V]) - x[target],  dx = (softmax(x) - [column == target]) * dloss
//
// where target < 0 (ignored) both are 0; dx is 0 in the columns from V on.
//
// A block has a row. It copies the row to shared memory, all of it asked for at once and summed in
// the order of arrival, so that the logits are read once and written once. Every thread works on
// what it has copied itself. Exponentials are powers of 2, one a number for the sum and one for the
// gradient; the sum is kept relative to the largest number so far (Milakov & Gimelshein 2018,
// arXiv:1805.02867), which changes at most once per 16 bytes. Rows that do not fit in the device's
// shared memory are read a second time from global memory, by the same code.
#include "cuda/elements.cuh"

namespace llmc::cuda {
namespace {

constexpr float kLn2 = 0.6931471805599453f;
// Below all logits, and no infinity, from which infinity could not be subtracted.
constexpr float kLowest = -1e30f;

// Two blocks on a Hopper SM where two rows of GPT-2's vocabulary fit, else one.
template <typename T>
constexpr int kThreads = sizeof(T) == 2 ? 512 : 1024;

constexpr int kStages = 4;

struct Shared {
  float max_room[kWarpSize];
  float sum_room[kWarpSize];
};

// sum of 2^(x * log2(e) - shift) over the x so far, shift the largest x * log2(e).
struct Softmax {
  float shift = kLowest, sum = 0;

  template <int kSize>
  __device__ void Add(const float (&x)[kSize]) {
    float largest = x[0];
#pragma unroll
    for (int k = 1; k < kSize; ++k) largest = fmaxf(largest, x[k]);
    largest *= kLog2E;
    if (largest > shift) {
      sum *= ptx::Exp2(shift - largest);
      shift = largest;
    }
#pragma unroll
    for (int k = 0; k < kSize; ++k) sum += Power(x[k]);
  }
  __device__ float Power(float x) const { return ptx::Exp2(fmaf(x, kLog2E, -shift)); }

  // That of all threads of the block together.
  __device__ Softmax OfBlock(Shared& shared) const {
    Softmax all;
    all.shift = BlockMax(shift, shared.max_room);
    all.sum = BlockSum(sum * ptx::Exp2(shift - all.shift), shared.sum_room);
    return all;
  }
  __device__ float Loss(float x) const { return kLn2 * (fmaf(-x, kLog2E, shift) + log2f(sum)); }
};

// Logits from `column` on; those of columns that do not exist have a power of 0.
template <typename Vector, typename T>
__device__ inline void LoadLogits(float (&x)[Vector::kSize], const T* row, int column, int V) {
  ToFloats(x, Vector::Load(row + column));
  if (column + Vector::kSize > V) {
#pragma unroll
    for (int k = 0; k < Vector::kSize; ++k)
      if (column + k >= V) x[k] = -INFINITY;
  }
}

template <typename Vector, typename T>
__device__ inline void AddColumns(Softmax& softmax, const T* row, int begin, int end, int V) {
  constexpr int kStride = kThreads<T> * Vector::kSize;
#pragma unroll 2
  for (int column = begin + threadIdx.x * Vector::kSize; column < end; column += kStride) {
    float x[Vector::kSize];
    LoadLogits<Vector>(x, row, column, V);
    softmax.Add(x);
  }
}

template <int kStage>
__device__ inline void WaitForStage() { ptx::CopyAsyncWait<kStages - 1 - kStage>(); }

// Copies a row to `staged` while adding what has come.
template <typename Vector, typename T>
__device__ inline Softmax CopyAndAdd(T* staged, const T* row, int V, int Vp) {
  constexpr int kStride = kThreads<T> * Vector::kSize;
  int per_stage = (Vp + kStages * kStride - 1) / (kStages * kStride) * kStride;
  for (int stage = 0; stage < kStages; ++stage) {
    int begin = stage * per_stage, end = min(begin + per_stage, Vp);
#pragma unroll 4
    for (int column = begin + threadIdx.x * Vector::kSize; column < end; column += kStride)
      ptx::CopyAsync16(staged + column, row + column, true);
    ptx::CopyAsyncCommit();
  }
  Softmax softmax;
  auto add = [&](int stage) {
    int begin = stage * per_stage;
    AddColumns<Vector>(softmax, staged, begin, min(begin + per_stage, Vp), V);
  };
  static_assert(kStages == 4);
  WaitForStage<0>(), add(0);
  WaitForStage<1>(), add(1);
  WaitForStage<2>(), add(2);
  WaitForStage<3>(), add(3);
  return softmax;
}

template <typename T>
__device__ inline float LogitOf(int target, const T* row, int V) {
  return target < V ? ToFloat(row[target]) : NAN;
}

template <typename Vector, typename T>
__device__ inline void Zero(T* row, int Vp) {
  constexpr int kStride = kThreads<T> * Vector::kSize;
  float zeros[Vector::kSize] = {};
  for (int column = threadIdx.x * Vector::kSize; column < Vp; column += kStride)
    FromFloats<Vector>(zeros).StoreStreaming(row + column);
}

template <typename T, typename Vector, bool kStaged>
__global__ void __launch_bounds__(kThreads<T>)
    CrossEntropy(const int* targets, const float* dlosses, T* logits, float* losses, int V,
                  int Vp) {
  constexpr int kSize = Vector::kSize, kStride = kThreads<T> * kSize;
  Shared& shared = SharedMemory<Shared>();
  T* staged = reinterpret_cast<T*>(&shared + 1);
  int64_t n = blockIdx.x;
  T* row = logits + n * Vp;
  int target = targets[n];
  if (target < 0) {
    Zero<Vector>(row, Vp);
    if (threadIdx.x == 0) losses[n] = 0;
    return;
  }
  float target_logit = LogitOf(target, row, V);  // before any thread writes to the row
  Softmax softmax;
  if constexpr (kStaged)
    softmax = CopyAndAdd<Vector>(staged, row, V, Vp);
  else
    AddColumns<Vector>(softmax, row, 0, Vp, V);
  softmax = softmax.OfBlock(shared);
  if (threadIdx.x == 0) losses[n] = softmax.Loss(target_logit);

  const T* source = kStaged ? staged : row;
  float dloss = dlosses[n], scale = dloss / softmax.sum;
#pragma unroll 2
  for (int column = threadIdx.x * kSize; column < Vp; column += kStride) {
    float x[kSize];
    LoadLogits<Vector>(x, source, column, V);
#pragma unroll
    for (int k = 0; k < kSize; ++k) x[k] = softmax.Power(x[k]) * scale;
    if (column <= target && target < column + kSize) {
#pragma unroll
      for (int k = 0; k < kSize; ++k)
        if (column + k == target) x[k] -= dloss;
    }
    FromFloats<Vector>(x).StoreStreaming(row + column);
  }
}

template <typename T, typename Vector>
__global__ void __launch_bounds__(kThreads<T>)
    CrossEntropyLosses(const int* targets, const T* logits, float* losses, int V, int Vp) {
  int64_t n = blockIdx.x;
  const T* row = logits + n * Vp;
  int target = targets[n];
  if (target < 0) {
    if (threadIdx.x == 0) losses[n] = 0;
    return;
  }
  Softmax softmax;
  AddColumns<Vector>(softmax, row, 0, Vp, V);
  softmax = softmax.OfBlock(SharedMemory<Shared>());
  if (threadIdx.x == 0) losses[n] = softmax.Loss(LogitOf(target, row, V));
}

template <typename T>
bool Vectorised(const T* logits, int64_t Vp) {
  return Aligned16(logits) && Vp % Vec<T>::kSize == 0;
}

template <typename T>
Status Forward(Stream stream, int64_t N, int V, int Vp, const int* targets, const float* dlosses,
               T* logits, float* losses) {
  unsigned grid = static_cast<unsigned>(N);
  auto launch = [&](const auto& kernel, size_t shared) {
    return Launch(kernel, grid, kThreads<T>, shared, stream, targets, dlosses, logits, losses, V,
                  Vp);
  };
  size_t staged = sizeof(Shared) + Vp * sizeof(T);
  if (!Vectorised(logits, Vp))
    return launch(Kernel<CrossEntropy<T, One<T>, false>>, sizeof(Shared));
  if (staged > static_cast<size_t>(SharedMemoryLimit()))
    return launch(Kernel<CrossEntropy<T, Vec<T>, false>>, sizeof(Shared));
  return launch(Kernel<CrossEntropy<T, Vec<T>, true>>, staged);
}

template <typename T>
Status Losses(Stream stream, int64_t N, int V, int Vp, const int* targets, const T* logits,
              float* losses) {
  auto kernel = Vectorised(logits, Vp) ? Kernel<CrossEntropyLosses<T, Vec<T>>>
                                       : Kernel<CrossEntropyLosses<T, One<T>>>;
  return Launch(kernel, static_cast<unsigned>(N), kThreads<T>, sizeof(Shared), stream, targets,
                logits, losses, V, Vp);
}

}  // namespace

Status ClassifierForward(Stream stream, Type type, int64_t N, int V, int Vp, const int* targets,
                         const float* dlosses, void* logits, float* losses) {
  if (type == Type::kBF16)
    return Forward(stream, N, V, Vp, targets, dlosses, static_cast<bf16*>(logits), losses);
  return Forward(stream, N, V, Vp, targets, dlosses, static_cast<float*>(logits), losses);
}

Status ClassifierLosses(Stream stream, Type type, int64_t N, int V, int Vp, const int* targets,
                        const void* logits, float* losses) {
  if (type == Type::kBF16)
    return Losses(stream, N, V, Vp, targets, static_cast<const bf16*>(logits), losses);
  return Losses(stream, N, V, Vp, targets, static_cast<const float*>(logits), losses);
}

}  // namespace llmc::cuda
