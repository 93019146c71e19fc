// Gradients of the embeddings (llm.c encoder.cuh).
//
//   dwte[v] += sum of dout[n] over the n with token v;  dwpe[t] = sum of dout[b,t] over b
//
// The rows of dout come with their order by token. A block takes a window of that order and adds
// runs of equal tokens in registers. A run that lies within a window is added to dwte at once; of
// others each window stores its part, and the window where the run begins adds them up in a second
// kernel. So every row is read once, however often a token occurs, nothing is added atomically, and
// the order of all sums is fixed.
#include "cuda/elements.cuh"

namespace llmc::cuda {
namespace {

constexpr int kWindow = kEncoderWindow;
constexpr int kAhead = 8;  // rows asked for before the first is added
constexpr int kMaxThreads = 256;
static_assert(kWindow % kAhead == 0);

// The sorted tokens and what belongs to them.
struct Sorted {
  const int* tokens;
  const int* order;  // rows of dout
  float* dwte;
  float* partials;  // (windows,2,C): parts of runs that began before, and that begin in, a window
  int N, C, Vp;

  // Whether the run at position i - 1 goes on at i.
  __device__ bool GoesOn(int i) const { return 0 < i && i < N && tokens[i - 1] == tokens[i]; }

  template <int kSize>
  __device__ void AddTo(int token, int channel, const float (&sum)[kSize]) const {
    if (token < 0 || token >= Vp) return;
    float* to = dwte + int64_t{token} * C + channel;
    float total[kSize];
    LoadFloats(total, to);
#pragma unroll
    for (int k = 0; k < kSize; ++k) total[k] += sum[k];
    StoreFloats(total, to);
  }
  __device__ float* Part(int64_t window, bool begins, int channel) const {
    return partials + (2 * window + begins) * C + channel;
  }
};

template <typename Vector>
__device__ inline int Channel() {
  return static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * Vector::kSize;
}

template <typename Vector, typename T>
__global__ void __launch_bounds__(kMaxThreads) AddRuns(const T* dout, Sorted sorted) {
  constexpr int kSize = Vector::kSize;
  int begin = blockIdx.x * kWindow, end = min(begin + kWindow, sorted.N);
  int channel = Channel<Vector>();
  if (channel >= sorted.C) return;
  bool began_before = sorted.GoesOn(begin);
  float sum[kSize] = {};
  for (int i = begin; i < end; i += kAhead) {
    Vector rows[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      int64_t row = sorted.order[min(i + j, end - 1)];
      rows[j] = Vector::LoadStreaming(dout + row * sorted.C + channel);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (i + j >= end) break;
      float x[kSize];
      ToFloats(x, rows[j]);
#pragma unroll
      for (int k = 0; k < kSize; ++k) sum[k] += x[k];
      int next = i + j + 1;
      bool goes_on = sorted.GoesOn(next);
      if (goes_on && next < end) continue;
      if (goes_on || began_before) {
        StoreFloats(sum, sorted.Part(blockIdx.x, !began_before, channel));
      } else {
        sorted.AddTo(sorted.tokens[next - 1], channel, sum);
      }
      began_before = false;
#pragma unroll
      for (int k = 0; k < kSize; ++k) sum[k] = 0;
    }
  }
}

// The last position whose run is that of position i, by bisection.
__device__ inline int LastOfRun(const int* tokens, int i, int N) {
  int token = tokens[i], above = N;
  while (above - i > 1) {
    int middle = i + (above - i) / 2;
    if (tokens[middle] == token)
      i = middle;
    else
      above = middle;
  }
  return i;
}

__global__ void __launch_bounds__(kMaxThreads) JoinRuns(Sorted sorted) {
  int begin = blockIdx.x * kWindow, end = begin + kWindow;
  if (!sorted.GoesOn(end)) return;
  int token = sorted.tokens[end];
  bool whole = sorted.tokens[begin] == token;
  if (whole && sorted.GoesOn(begin)) return;  // it began in an earlier window
  int channel = Channel<One<float>>();
  if (channel >= sorted.C) return;
  int last = LastOfRun(sorted.tokens, end, sorted.N) / kWindow;
  float sum[1] = {*sorted.Part(blockIdx.x, true, channel)};
#pragma unroll 8
  for (int window = blockIdx.x + 1; window <= last; ++window)
    sum[0] += *sorted.Part(window, false, channel);
  sorted.AddTo(token, channel, sum);
}

template <typename Vector, typename T>
__global__ void __launch_bounds__(kMaxThreads)
    AddBatch(const T* dout, float* dwpe, int B, int length, int C) {
  constexpr int kSize = Vector::kSize;
  int channel = Channel<Vector>(), t = blockIdx.x;
  if (channel >= C) return;
  float sum[kSize] = {};
  if (t < length) {
#pragma unroll 8
    for (int b = 0; b < B; ++b) {
      float x[kSize];
      ToFloats(x, Vector::LoadStreaming(dout + (int64_t{b} * length + t) * C + channel));
#pragma unroll
      for (int k = 0; k < kSize; ++k) sum[k] += x[k];
    }
  }
  StoreFloats(sum, dwpe + int64_t{t} * C + channel);
}

struct Blocks {
  unsigned threads, slices;  // of the channels
  Blocks(int C, int size)
      : threads(std::min<unsigned>(CeilDiv(CeilDiv(C, size), kWarpSize) * kWarpSize, kMaxThreads)),
        slices(CeilDiv(C, int64_t{threads} * size)) {}
};

template <typename Vector, typename T>
Status Backward(Stream stream, const EncoderSizes& s, const T* dout, const Sorted& sorted,
                float* dwpe) {
  unsigned windows = CeilDiv(sorted.N, kWindow);
  Blocks by_vector(sorted.C, Vector::kSize), by_one(sorted.C, 1);
  Status status = Launch(Kernel<AddRuns<Vector, T>>, dim3(windows, by_vector.slices),
                         by_vector.threads, 0, stream, dout, sorted);
  if (!status.ok()) return status;
  status = Launch(Kernel<JoinRuns>, dim3(windows, by_one.slices), by_one.threads, 0, stream,
                  sorted);
  if (!status.ok()) return status;
  return Launch(Kernel<AddBatch<Vector, T>>, dim3(s.max_T, by_vector.slices), by_vector.threads, 0,
                stream, dout, dwpe, s.B, s.T, s.C);
}

template <typename T>
Status Backward(Stream stream, const EncoderSizes& s, const T* dout, const Sorted& sorted,
                float* dwpe) {
  bool vectors = s.C % Vec<T>::kSize == 0 && Aligned16(dout) && Aligned16(sorted.dwte) &&
                 Aligned16(sorted.partials) && Aligned16(dwpe);
  return vectors ? Backward<Vec<T>>(stream, s, dout, sorted, dwpe)
                 : Backward<One<T>>(stream, s, dout, sorted, dwpe);
}

}  // namespace

Status EncoderBackward(Stream stream, Type type, EncoderSizes s, const void* dout,
                       const int* tokens, const int* order, float* dwte, float* dwpe,
                       float* partials) {
  Sorted sorted = {tokens, order, dwte, partials, s.B * s.T, s.C, s.Vp};
  if (type == Type::kBF16)
    return Backward(stream, s, static_cast<const bf16*>(dout), sorted, dwpe);
  return Backward(stream, s, static_cast<const float*>(dout), sorted, dwpe);
}

}  // namespace llmc::cuda
