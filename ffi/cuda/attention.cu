// Causal multi-head attention (llm.c attention.cuh), which kernel for which type and device.
#include "cuda/attention.cuh"

namespace llmc::cuda {
namespace {

// Whether the library holds code for sm_90a, without which the kernels for Hopper are empty.
#if defined(LLMC_EMULATED) || defined(LLMC_SM90A)
constexpr bool kBuiltForHopper = true;
#else
constexpr bool kBuiltForHopper = false;
#endif

bool OnHopper() { return kBuiltForHopper && Architecture() == 90; }

}  // namespace

Status AttentionForward(Stream stream, Type type, AttentionSizes sizes, const void* qkv, void* out,
                        float* lse) {
  if (type == Type::kF32)
    return AttentionForwardPlain(stream, sizes, static_cast<const float*>(qkv),
                                 static_cast<float*>(out), lse);
  if (OnHopper()) return AttentionForwardHopper(stream, type, sizes, qkv, out, lse);
  return AttentionForwardMma(stream, type, sizes, qkv, out, lse);
}

Status AttentionBackward(Stream stream, Type type, AttentionSizes sizes, bool deterministic,
                         const void* out, const float* lse, const void* dout, const void* qkv,
                         void* dqkv, float* delta, float* dq_sum) {
  if (type == Type::kF32)
    return AttentionBackwardPlain(stream, sizes, static_cast<const float*>(out), lse,
                                  static_cast<const float*>(dout),
                                  static_cast<const float*>(qkv), static_cast<float*>(dqkv),
                                  delta);
  if (OnHopper() && sizes.HS == 64 && !deterministic)
    return AttentionBackwardHopper(stream, type, sizes, out, lse, dout, qkv, dqkv, delta, dq_sum);
  return AttentionBackwardMma(stream, type, sizes, deterministic, out, lse, dout, qkv, dqkv, delta,
                              dq_sum);
}

}  // namespace llmc::cuda
