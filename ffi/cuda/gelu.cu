// Backward of the GELU in its tanh form, with the gradient of the bias in front of it
// (llm.c gelu.cuh, and matmul_backward_bias_kernel9 for the sums).
//
//   dinp = dout * gelu'(inp), dbias = sum_N(dinp), and on request gelu(inp) again
//
// With e = exp(-2 u), u the argument of tanh, and s = 1 / (1 + e) = (1 + tanh(u)) / 2,
//   gelu = inp s,  gelu' = s + 2 inp s^2 e u':
// one power of 2 and one reciprocal, and no difference of numbers that are nearly equal.
//
// A thread takes the same 16 bytes of many rows and adds its columns of dinp, before rounding, in
// registers. Each block leaves its sums in `partials`.
#include "cuda/elements.cuh"

namespace llmc::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kAhead = 2;  // rows asked for before the first is worked on
constexpr float kScale = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float kCubic = 0.044715f;
constexpr float kPower = -2 * kLog2E * kScale;  // e = 2^(kPower * (x + kCubic x^3))
constexpr float kLargestPower = 120;  // e then is finite, and s of no account

template <typename T>
struct Problem {
  const T *dout, *inp;
  T *dinp, *out;  // out: null where it is not wanted
  float* partials;  // (blocks,C)
  int N, C;
};

__device__ inline void Gelu(float x, float& value, float& slope) {
  float square = x * x;
  float e = ptx::Exp2(fminf(kPower * x * fmaf(kCubic, square, 1.0f), kLargestPower));
  float s = __fdividef(1.0f, 1.0f + e);
  value = x * s;
  slope = s + 2 * kScale * value * (s * e) * fmaf(3 * kCubic, square, 1.0f);
}

template <typename Vector, typename T, bool kOut>
__global__ void __launch_bounds__(kThreads, 7) GeluBackwardKernel(Problem<T> p) {
  constexpr int kSize = Vector::kSize;
  int channel = static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * kSize;
  if (channel >= p.C) return;
  float dbias[kSize] = {};
  int stride = gridDim.x;
  for (int64_t first = blockIdx.x; first < p.N; first += kAhead * stride) {
    Vector inp[kAhead] = {}, dout[kAhead] = {};
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      int64_t n = first + j * stride;
      if (n >= p.N) break;
      inp[j] = Vector::LoadStreaming(p.inp + n * p.C + channel);
      dout[j] = Vector::LoadStreaming(p.dout + n * p.C + channel);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      int64_t n = first + j * stride;
      if (n >= p.N) break;
      float x[kSize], dx[kSize];
      ToFloats(x, inp[j]);
      ToFloats(dx, dout[j]);
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        float slope;
        Gelu(x[k], x[k], slope);
        dx[k] *= slope;
        dbias[k] += dx[k];
      }
      FromFloats<Vector>(dx).Store(p.dinp + n * p.C + channel);
      if constexpr (kOut) FromFloats<Vector>(x).Store(p.out + n * p.C + channel);
    }
  }
  StoreFloats(dbias, p.partials + int64_t{blockIdx.x} * p.C + channel);
}

template <typename Vector, typename T>
Status Launch(Stream stream, const Problem<T>& p, int blocks) {
  auto kernel = p.out ? Kernel<GeluBackwardKernel<Vector, T, true>>
                      : Kernel<GeluBackwardKernel<Vector, T, false>>;
  dim3 grid(blocks, CeilDiv(p.C, kThreads * Vector::kSize));
  return cuda::Launch(kernel, grid, kThreads, 0, stream, p);
}

template <typename T>
Status Run(Stream stream, int N, int C, const void* dout, const void* inp, void* dinp, void* out,
           float* partials, int blocks) {
  Problem<T> p = {static_cast<const T*>(dout), static_cast<const T*>(inp), static_cast<T*>(dinp),
                  static_cast<T*>(out), partials, N, C};
  bool vectors = C % Vec<T>::kSize == 0 && Aligned16(dout) && Aligned16(inp) && Aligned16(dinp) &&
                 Aligned16(out) && Aligned16(partials);
  return vectors ? Launch<Vec<T>>(stream, p, blocks) : Launch<One<T>>(stream, p, blocks);
}

}  // namespace

Status GeluBackward(Stream stream, Type type, int N, int C, const void* dout, const void* inp,
                    void* dinp, void* out, float* dbias, float* partials, int blocks) {
  auto run = type == Type::kBF16 ? Run<bf16> : Run<float>;
  Status status = run(stream, N, C, dout, inp, dinp, out, partials, blocks);
  if (!status.ok()) return status;
  return AddPartials(stream, partials, blocks, C, dbias, nullptr);
}

}  // namespace llmc::cuda
