// The kernels as the handlers see them: one table of functions for each instruction set.
#pragma once

#include <type_traits>

#include "cpu/types.h"

namespace llmc {

// Kernels on activations of type T; names and order of the arguments as in <op>.h.
template <typename T>
struct ActivationKernels {
  void (*layernorm_forward)(Threads&, int64_t N, int64_t C, const T* inp, const T* branch,
                            const float* weight, const float* bias, float eps, T* sum, T* out,
                            float* mean, float* rstd);
  void (*layernorm_backward)(Threads&, int64_t N, int64_t C, const float* mean, const float* rstd,
                             const T* dsum, const T* dout, const T* inp, const float* weight,
                             T* dinp, float* dweight, float* dbias);
  void (*attention_forward)(Threads&, int64_t B, int64_t T_, int64_t NH, int64_t HS, const T* qkv,
                            T* out, float* lse);
  void (*attention_backward)(Threads&, int64_t B, int64_t T_, int64_t NH, int64_t HS, const T* out,
                             const float* lse, const T* dout, const T* qkv, T* dqkv);
  void (*cached_attention)(Threads&, int64_t B, int64_t NH, int64_t S, int64_t HS, const T* qkv,
                           const int32_t* position, T* keys, T* values, T* out);
  void (*encoder_backward)(Threads&, int64_t B, int64_t T_, int64_t C, int64_t max_T,
                           const T* dout, const int32_t* inp, float* dwte, float* dwpe);
};

// Kernels that also read weights, of type W.
template <typename T, typename W>
struct WeightKernels {
  void (*encoder_forward)(Threads&, int64_t N, int64_t T_, int64_t C, const int32_t* inp,
                          const W* wte, const W* wpe, T* out);
  void (*matmul_forward)(Threads&, int64_t N, int64_t C, int64_t OC, const T* inp,
                         const W* weight, const float* bias, T* out);
  void (*matmul_backward)(Threads&, int64_t N, int64_t C, int64_t OC, const T* dout, const T* inp,
                          const W* weight, T* dinp, T* dweight, float* dbias);
  void (*mlp_forward)(Threads&, int64_t N, int64_t C, int64_t H, const T* inp, const W* fcw,
                      const float* fcb, const W* fcprojw, const float* fcprojb, T* out, T* fch,
                      T* fch_gelu);
  void (*mlp_backward)(Threads&, int64_t N, int64_t C, int64_t H, const T* fch, const T* dout,
                       const T* inp, const W* fcw, const float* fcb, const W* fcprojw, T* dinp,
                       T* dfcw, float* dfcb, T* dfcprojw, float* dfcprojb, T* fch_gelu, T* dfch);
  void (*logits)(Threads&, int64_t N, int64_t C, int64_t Vp, const T* lnf, const W* wte,
                 float* logits);
  void (*classifier)(Threads&, int64_t N, int64_t C, int64_t V, int64_t Vp, const T* lnf,
                     const W* wte, const int32_t* targets, const float* dlosses, float* losses,
                     T* dlnf, float* dwte, T* powers, int64_t at_once);
};

struct Kernels {
  ActivationKernels<float> float_activations;
  ActivationKernels<BF16> bf16_activations;
  WeightKernels<float, float> float_weights;
  WeightKernels<BF16, BF16> bf16_weights;
  WeightKernels<BF16, float> mixed_weights;  // bfloat16 activations, float weights
  void (*adamw)(Threads&, int64_t leaves, const AdamWLeaf* leaf, const AdamWHyper& hyper);
  double (*sum_of_squares)(Threads&, int64_t leaves, const Gradient* grads);
};

// The table of each instruction set; those of x86-64 exist there only.
extern const Kernels kPortableKernels, kAvx2Kernels, kAvx512Kernels, kAvx512Bf16Kernels,
    kAmxKernels;

// The table in force: see isa.cc.
const Kernels& ActiveKernels();

// The part of a table for these types.
template <typename T>
const ActivationKernels<T>& On(const Kernels& kernels = ActiveKernels()) {
  if constexpr (std::is_same_v<T, float>)
    return kernels.float_activations;
  else
    return kernels.bf16_activations;
}
template <typename T, typename W>
const WeightKernels<T, W>& On(const Kernels& kernels = ActiveKernels()) {
  if constexpr (std::is_same_v<T, float>)
    return kernels.float_weights;
  else if constexpr (std::is_same_v<W, float>)
    return kernels.mixed_weights;
  else
    return kernels.bf16_weights;
}

}  // namespace llmc
