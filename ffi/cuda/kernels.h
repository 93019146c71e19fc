// The CUDA kernels, for those who call them: what a launcher takes, without CUDA's headers, so that
// handlers and tests are compiled by the host's compiler alone.
//
// A launcher puts its kernels on `stream` and returns at once; all pointers are to device memory.
// The letters of shapes are those of llmc_jax/ops/__init__.py; each .cu file has the maths.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llmc::cuda {

using Stream = void*;  // a cudaStream_t

// What came of a launch; the messages are CUDA's and live for ever.
struct Status {
  const char* error = nullptr;
  bool ok() const { return !error; }
};

enum class Type { kF32, kBF16, kF16 };

// ---- global_norm.cu

// Rooms for partial sums that global_norm needs.
constexpr int kNormPartials = 512;

// The gradient of one tensor: bfloat16 where `half`, else float32.
struct Gradient {
  const void* data;
  int64_t size;
  bool half;
};

// norm[0] = sqrt(sum of the squares of all gradients); partials: room for kNormPartials numbers.
Status GlobalNorm(Stream stream, int count, const Gradient* grads, float* partials, float* norm);

// ---- classifier.cu

// logits (N,Vp) of `type` become their gradient; targets (N), dlosses (N), losses (N).
Status ClassifierForward(Stream stream, Type type, int64_t N, int V, int Vp, const int* targets,
                         const float* dlosses, void* logits, float* losses);
Status ClassifierLosses(Stream stream, Type type, int64_t N, int V, int Vp, const int* targets,
                        const void* logits, float* losses);

// ---- encoder.cu

struct EncoderSizes {
  int B, T, C, Vp, max_T;
};

// Rows of dout, sorted by token, that a block adds up.
constexpr int kEncoderWindow = 32;

// dwte (Vp,C) in place, dwpe (max_T,C) of dout (B,T,C); tokens (B*T) sorted, order (B*T) the rows
// they belong to; partials (windows,2,C).
Status EncoderBackward(Stream stream, Type type, EncoderSizes sizes, const void* dout,
                       const int* tokens, const int* order, float* dwte, float* dwpe,
                       float* partials);

// ---- layernorm.cu

// Of N rows of C: sum = residual + branch, out = layernorm(sum).
Status ResidualLayernormForward(Stream stream, Type type, int N, int C, float eps,
                                const void* residual, const void* branch, const float* weight,
                                const float* bias, void* sum, void* out, float* mean, float* rstd);

// dsum, which is added to dinp, may be null; partials (blocks,2,C).
Status LayernormBackward(Stream stream, Type type, int N, int C, const float* mean,
                         const float* rstd, const void* dsum, const void* dout, const void* inp,
                         const float* weight, void* dinp, float* dweight, float* dbias,
                         float* partials, int blocks);

// ---- gelu.cu

// Of N rows of C; out = gelu(inp) may be null; partials (blocks,C).
Status GeluBackward(Stream stream, Type type, int N, int C, const void* dout, const void* inp,
                    void* dinp, void* out, float* dbias, float* partials, int blocks);

// ---- adamw.cu

struct AdamWLeaf {
  void* param;
  float *m, *v;
  Gradient grad;
  float weight_decay;
  bool aligned = false;  // for the launcher
};

// lr, scale and step (1 for the first) are read on the device.
struct AdamWHyper {
  const float *lr, *scale;
  const int* step;
  float beta1, beta2, eps;
};

// params, of `type`, m and v in place.
Status AdamW(Stream stream, Type type, int count, const AdamWLeaf* leaves,
             const AdamWHyper& hyper);

// ---- attention.cu

// HS: 64 or 128 in bfloat16 and float16, at most 128 in float32; T * 3C below 2^32.
struct AttentionSizes {
  int64_t B, T, NH, HS;
};

// out = softmax(q k^T / sqrt(HS), causal) v; qkv (B,T,3C): q, k and v, each (NH,HS); out (B,T,C);
// lse (B,NH,T): the logarithm of the sum of exp of a query's scaled scores.
Status AttentionForward(Stream stream, Type type, AttentionSizes sizes, const void* qkv, void* out,
                        float* lse);

// Rows of a sequence in backward's dq_sum: whole tiles.
constexpr int64_t AttentionDqRows(int64_t T) { return (T + 63) / 64 * 64; }

// dqkv (B,T,3C). Scratch: delta (B,NH,T); dq_sum (B,AttentionDqRows(T),C), used only where not
// `deterministic` and not float32. Not deterministic: dq is a sum in the order in which blocks come
// to it.
Status AttentionBackward(Stream stream, Type type, AttentionSizes sizes, bool deterministic,
                         const void* out, const float* lse, const void* dout, const void* qkv,
                         void* dqkv, float* delta, float* dq_sum);

}  // namespace llmc::cuda
