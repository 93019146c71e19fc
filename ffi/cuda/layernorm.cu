// Layer normalisation: its backward, and both ways of it behind a residual connection
// (llm.c layernorm.cuh: fused_residual_forward5, layernorm_backward_kernel10).
//
//   forward:   sum = residual + branch, out = norm * weight + bias, norm = (sum - mean) * rstd
//   backward:  dinp = dsum + rstd * (dnorm - mean_C(dnorm) - norm * mean_C(dnorm * norm)),
//              dnorm = dout * weight, dweight = sum_N(dout * norm), dbias = sum_N(dout)
//
// A block takes one row after another, a thread the same 16 bytes of each, so that a row is read
// once and stays in registers, and with it the thread's share of weight, bias and their gradients.
// The next row is asked for before this one is worked on. Each block leaves its part of dweight and
// dbias in `partials`. Rows that are too long or not aligned are read from memory as often as they
// are used.
#include "cuda/elements.cuh"

namespace llmc::cuda {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr int kLongRowThreads = 256;
// So that an SM of a Hopper holds 10 blocks forward and 8 backward of GPT-2's 768 channels in
// bfloat16, and all blocks are at work at once.
constexpr int kForwardRegisters = 64;
constexpr int kForwardBlocks = 10 * 132;
constexpr int kBackwardRegisters = 80;

// Sums over the block; successive ones alternate between two rooms, so that one barrier does.
struct Shared {
  float room[2][2 * kMaxWarps];
};

template <int kCount>
__device__ inline void BlockSums(float (&x)[kCount], float* room) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    x[i] = WarpSum(x[i]);
    if (threadIdx.x % kWarpSize == 0) room[threadIdx.x / kWarpSize * kCount + i] = x[i];
    x[i] = 0;
  }
  __syncthreads();
  int warps = blockDim.x / kWarpSize;
#pragma unroll 1  // there are three for GPT-2's channels, and no registers for more
  for (int warp = 0; warp < warps; ++warp) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] += room[warp * kCount + i];
  }
}

template <typename T>
struct Forward {
  const T *residual, *branch;
  const float *weight, *bias;
  T *sum, *out;
  float *mean, *rstd;
  int N, C;
  float eps;
  float per_channel = 1.0f / C;
};

template <typename T>
struct Backward {
  const float *mean, *rstd;
  const T *dsum, *dout, *inp;  // dsum: null where there is no residual connection
  const float* weight;
  T* dinp;
  float* partials;  // (blocks,2,C)
  int N, C;
  float per_channel = 1.0f / C;

  __device__ float* DWeight() const { return partials + int64_t{blockIdx.x} * 2 * C; }
  __device__ float* DBias() const { return DWeight() + C; }
};

template <typename Vector, typename T>
__global__ void __maxnreg__(kForwardRegisters) ResidualLayernormForwardKernel(Forward<T> f) {
  constexpr int kSize = Vector::kSize;
  Shared& shared = SharedMemory<Shared>();
  int block = blockIdx.x, channel = threadIdx.x * kSize;
  bool mine = channel < f.C;
  float weight[kSize] = {}, bias[kSize] = {};
  Vector residual = {}, branch = {};
  auto load = [&](int64_t n) {
    residual = Vector::Load(f.residual + n * f.C + channel);
    branch = Vector::LoadStreaming(f.branch + n * f.C + channel);
  };
  if (mine) {
    LoadFloats(weight, f.weight + channel);
    LoadFloats(bias, f.bias + channel);
    load(block);
  }
  for (int64_t n = block; n < f.N; n += gridDim.x) {
    float x[kSize], y[kSize];
    ToFloats(x, residual);
    ToFloats(y, branch);
    if (mine && n + gridDim.x < f.N) load(n + gridDim.x);
#pragma unroll
    for (int k = 0; k < kSize; ++k) x[k] += y[k];
    Vector rounded = FromFloats<Vector>(x);
    if (mine) rounded.Store(f.sum + n * f.C + channel);
    ToFloats(x, rounded);

    float total[1] = {}, squares[1] = {};
#pragma unroll
    for (int k = 0; k < kSize; ++k) total[0] += x[k];
    BlockSums(total, shared.room[0]);
    float mean = total[0] * f.per_channel;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      x[k] -= mean;
      if (mine) squares[0] += x[k] * x[k];
    }
    BlockSums(squares, shared.room[1]);
    float rstd = rsqrtf(squares[0] * f.per_channel + f.eps);
#pragma unroll
    for (int k = 0; k < kSize; ++k) x[k] = x[k] * rstd * weight[k] + bias[k];
    if (mine) FromFloats<Vector>(x).Store(f.out + n * f.C + channel);
    if (threadIdx.x == 0) {
      f.mean[n] = mean;
      f.rstd[n] = rstd;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kLongRowThreads) ResidualLayernormForwardLong(Forward<T> f) {
  Shared& shared = SharedMemory<Shared>();
  int64_t row = int64_t{blockIdx.x} * f.C;
  float total[1] = {}, squares[1] = {};
  for (int c = threadIdx.x; c < f.C; c += kLongRowThreads) {
    T x = FromFloat<T>(ToFloat(f.residual[row + c]) + ToFloat(f.branch[row + c]));
    f.sum[row + c] = x;
    total[0] += ToFloat(x);
  }
  BlockSums(total, shared.room[0]);
  float mean = total[0] * f.per_channel;
  for (int c = threadIdx.x; c < f.C; c += kLongRowThreads) {
    float x = ToFloat(f.sum[row + c]) - mean;
    squares[0] += x * x;
  }
  BlockSums(squares, shared.room[1]);
  float rstd = rsqrtf(squares[0] * f.per_channel + f.eps);
  for (int c = threadIdx.x; c < f.C; c += kLongRowThreads) {
    float x = (ToFloat(f.sum[row + c]) - mean) * rstd;
    f.out[row + c] = FromFloat<T>(x * f.weight[c] + f.bias[c]);
  }
  if (threadIdx.x == 0) {
    f.mean[blockIdx.x] = mean;
    f.rstd[blockIdx.x] = rstd;
  }
}

template <typename Vector, typename T, bool kResidual>
__global__ void __maxnreg__(kBackwardRegisters) LayernormBackwardKernel(Backward<T> b) {
  constexpr int kSize = Vector::kSize;
  Shared& shared = SharedMemory<Shared>();
  int block = blockIdx.x, channel = threadIdx.x * kSize;
  bool mine = channel < b.C;
  float weight[kSize] = {}, dweight[kSize] = {}, dbias[kSize] = {};
  Vector inp = {}, dout = {}, next_dsum = {};
  float mean = 0, rstd = 0;
  auto load = [&](int64_t n) {
    inp = Vector::LoadStreaming(b.inp + n * b.C + channel);
    dout = Vector::LoadStreaming(b.dout + n * b.C + channel);
    if constexpr (kResidual) next_dsum = Vector::LoadStreaming(b.dsum + n * b.C + channel);
    mean = b.mean[n];
    rstd = b.rstd[n];
  };
  if (mine) LoadFloats(weight, b.weight + channel);
  if (mine && block < b.N) load(block);
  int parity = 0;
  for (int64_t n = block; n < b.N; n += gridDim.x, parity ^= 1) {
    float norm[kSize], dnorm[kSize], sums[2] = {};  // of dnorm, of dnorm * norm
    ToFloats(norm, inp);
    ToFloats(dnorm, dout);
    float scale = rstd;
    Vector dsum = next_dsum;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      norm[k] = (norm[k] - mean) * rstd;
      dweight[k] += dnorm[k] * norm[k];
      dbias[k] += dnorm[k];
      dnorm[k] *= weight[k];
      sums[0] += dnorm[k];
      sums[1] += dnorm[k] * norm[k];
    }
    if (mine && n + gridDim.x < b.N) load(n + gridDim.x);
    BlockSums(sums, shared.room[parity]);
    if (!mine) continue;
    // both means times rstd here, which in the loop below would be one register too many
    float scaled_mean = scale * (sums[0] * b.per_channel);
    float scaled_norm_mean = scale * (sums[1] * b.per_channel);
    float more[kSize];
    if constexpr (kResidual) ToFloats(more, dsum);
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      dnorm[k] = scale * dnorm[k] - scaled_mean - norm[k] * scaled_norm_mean;
      if constexpr (kResidual) dnorm[k] += more[k];
    }
    FromFloats<Vector>(dnorm).Store(b.dinp + n * b.C + channel);
  }
  if (!mine) return;
  StoreFloats(dweight, b.DWeight() + channel);
  StoreFloats(dbias, b.DBias() + channel);
}

template <typename T>
__global__ void __launch_bounds__(kLongRowThreads) LayernormBackwardLong(Backward<T> b) {
  Shared& shared = SharedMemory<Shared>();
  int block = blockIdx.x;
  float *dweight = b.DWeight(), *dbias = b.DBias();
  for (int c = threadIdx.x; c < b.C; c += kLongRowThreads) dweight[c] = dbias[c] = 0;
  int parity = 0;
  for (int64_t n = block; n < b.N; n += gridDim.x, parity ^= 1) {
    int64_t row = n * b.C;
    float mean = b.mean[n], rstd = b.rstd[n], sums[2] = {};
    for (int c = threadIdx.x; c < b.C; c += kLongRowThreads) {
      float norm = (ToFloat(b.inp[row + c]) - mean) * rstd, dy = ToFloat(b.dout[row + c]);
      dweight[c] += dy * norm;
      dbias[c] += dy;
      sums[0] += dy * b.weight[c];
      sums[1] += dy * b.weight[c] * norm;
    }
    BlockSums(sums, shared.room[parity]);
    for (int c = threadIdx.x; c < b.C; c += kLongRowThreads) {
      float norm = (ToFloat(b.inp[row + c]) - mean) * rstd;
      float dnorm = ToFloat(b.dout[row + c]) * b.weight[c];
      float dx = rstd * (dnorm - sums[0] * b.per_channel - norm * (sums[1] * b.per_channel));
      b.dinp[row + c] = FromFloat<T>(b.dsum ? dx + ToFloat(b.dsum[row + c]) : dx);
    }
  }
}

// Threads that have 16 bytes of a row each; 0 where that is not possible.
template <typename T>
int VectorThreads(int C, std::initializer_list<const void*> rows) {
  bool aligned = C % Vec<T>::kSize == 0;
  for (const void* row : rows) aligned = aligned && Aligned16(row);
  int64_t threads = CeilDiv(C / Vec<T>::kSize, kWarpSize) * kWarpSize;
  return aligned && threads <= kMaxThreads ? static_cast<int>(threads) : 0;
}

template <typename T>
Status Run(Stream stream, const Forward<T>& f) {
  int threads = VectorThreads<T>(f.C, {f.residual, f.branch, f.weight, f.bias, f.sum, f.out});
  if (!threads)
    return Launch(Kernel<ResidualLayernormForwardLong<T>>, f.N, kLongRowThreads, sizeof(Shared),
                  stream, f);
  return Launch(Kernel<ResidualLayernormForwardKernel<Vec<T>, T>>, std::min(f.N, kForwardBlocks),
                threads, sizeof(Shared), stream, f);
}

template <typename T>
Status Run(Stream stream, const Backward<T>& b, int blocks) {
  int threads = VectorThreads<T>(b.C, {b.dsum, b.dout, b.inp, b.weight, b.dinp, b.partials});
  if (!threads)
    return Launch(Kernel<LayernormBackwardLong<T>>, blocks, kLongRowThreads, sizeof(Shared), stream,
                  b);
  auto kernel = b.dsum ? Kernel<LayernormBackwardKernel<Vec<T>, T, true>>
                       : Kernel<LayernormBackwardKernel<Vec<T>, T, false>>;
  return Launch(kernel, blocks, threads, sizeof(Shared), stream, b);
}

template <typename T>
Status RunForward(Stream stream, int N, int C, float eps, const void* residual, const void* branch,
                  const float* weight, const float* bias, void* sum, void* out, float* mean,
                  float* rstd) {
  Forward<T> f = {static_cast<const T*>(residual), static_cast<const T*>(branch), weight, bias,
                  static_cast<T*>(sum), static_cast<T*>(out), mean, rstd, N, C, eps};
  return Run(stream, f);
}

template <typename T>
Status RunBackward(Stream stream, int N, int C, const float* mean, const float* rstd,
                   const void* dsum, const void* dout, const void* inp, const float* weight,
                   void* dinp, float* partials, int blocks) {
  Backward<T> b = {mean, rstd, static_cast<const T*>(dsum), static_cast<const T*>(dout),
                   static_cast<const T*>(inp), weight, static_cast<T*>(dinp), partials, N, C};
  return Run(stream, b, blocks);
}

}  // namespace

Status ResidualLayernormForward(Stream stream, Type type, int N, int C, float eps,
                                const void* residual, const void* branch, const float* weight,
                                const float* bias, void* sum, void* out, float* mean,
                                float* rstd) {
  auto run = type == Type::kBF16 ? RunForward<bf16> : RunForward<float>;
  return run(stream, N, C, eps, residual, branch, weight, bias, sum, out, mean, rstd);
}

Status LayernormBackward(Stream stream, Type type, int N, int C, const float* mean,
                         const float* rstd, const void* dsum, const void* dout, const void* inp,
                         const float* weight, void* dinp, float* dweight, float* dbias,
                         float* partials, int blocks) {
  auto run = type == Type::kBF16 ? RunBackward<bf16> : RunBackward<float>;
  Status status = run(stream, N, C, mean, rstd, dsum, dout, inp, weight, dinp, partials, blocks);
  if (!status.ok()) return status;
  return AddPartials(stream, partials, blocks, C, dweight, dbias);
}

}  // namespace llmc::cuda
