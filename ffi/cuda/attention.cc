// Handlers of attention: see attention.cu.
#include "cuda/handler.h"

namespace llmc {
namespace {

using cuda::AttentionSizes;

// The sizes of qkv (B,T,3C), if there is a kernel for them and its type.
AttentionSizes Sizes(Checker& check, const Any& qkv, int64_t NH) {
  AttentionSizes sizes = {check.Size("qkv", qkv, 3, 0), check.Size("qkv", qkv, 3, 1), NH, 0};
  int64_t width = check.Size("qkv", qkv, 3, 2);
  if (NH <= 0 || width % (3 * NH)) {
    check.Fail("qkv has " + std::to_string(width) + " columns, not 3 * NH * HS for NH " +
               std::to_string(NH));
    return sizes;
  }
  sizes.HS = width / (3 * NH);
  auto type = qkv.element_type();
  std::string other = " (attention=jnp accepts any head size)";
  if (type == ffi::F32)
    check.Require(sizes.HS <= 128, "head size " + std::to_string(sizes.HS) +
                                       ", expected at most 128 in float32" + other);
  else if (type == ffi::BF16 || type == ffi::F16)
    check.Require(sizes.HS == 64 || sizes.HS == 128,
                  "head size " + std::to_string(sizes.HS) + ", expected 64 or 128 in " +
                      TypeString(type) + other);
  else
    check.Fail("qkv is " + TypeString(type) + ", expected float32, bfloat16 or float16");
  // what the kernels count in 32 bits: the numbers of a sequence, and blocks, of eight rows or more
  int64_t blocks = sizes.B * NH * ((sizes.T + 7) / 8);
  check.Require(sizes.T * width < int64_t{1} << 32 && blocks < int64_t{1} << 31,
                "qkv is " + ShapeString(qkv.dimensions()) +
                    ", expected T * 3C < 2^32 and B * NH * T / 8 < 2^31");
  return sizes;
}

ffi::Error Forward(StreamArgument stream, Any qkv, AnyOut out, F32Out lse, int64_t NH) {
  Checker check("llmc_cuda_attention_forward");
  AttentionSizes sizes = Sizes(check, qkv, NH);
  check.Shape("out", *out, {sizes.B, sizes.T, NH * sizes.HS});
  check.SameType("out", *out, qkv);
  check.Shape("lse", *lse, {sizes.B, NH, sizes.T});
  return Run(check, [&] {
    return cuda::AttentionForward(ToStream(stream), TypeOf(qkv), sizes, qkv.untyped_data(),
                                  Out(out), Out(lse));
  });
}

ffi::Error Backward(StreamArgument stream, Any out, F32 lse, Any dout, Any qkv, AnyOut dqkv,
                    F32Out delta, F32Out dq_sum, int64_t NH, int64_t deterministic) {
  Checker check("llmc_cuda_attention_backward");
  AttentionSizes sizes = Sizes(check, qkv, NH);
  int64_t C = NH * sizes.HS;
  bool sums = !deterministic && qkv.element_type() != ffi::F32;
  for (auto [name, buffer] : {std::pair("out", &out), std::pair("dout", &dout)}) {
    check.Shape(name, *buffer, {sizes.B, sizes.T, C});
    check.SameType(name, *buffer, qkv);
  }
  check.Shape("lse", lse, {sizes.B, NH, sizes.T});
  check.Shape("dqkv", *dqkv, {sizes.B, sizes.T, 3 * C});
  check.SameType("dqkv", *dqkv, qkv);
  check.Shape("delta", *delta, {sizes.B, NH, sizes.T});
  check.Shape("dq_sum", *dq_sum, {sums ? sizes.B : 0, cuda::AttentionDqRows(sizes.T), C});
  return Run(check, [&] {
    return cuda::AttentionBackward(ToStream(stream), TypeOf(qkv), sizes, deterministic,
                                   out.untyped_data(), lse.typed_data(), dout.untyped_data(),
                                   qkv.untyped_data(), Out(dqkv), Out(delta),
                                   sums ? Out(dq_sum) : nullptr);
  });
}

}  // namespace

LLMC_CUDA_HANDLER(llmc_cuda_attention_forward, Forward,
                  BindStream()
                      .Arg<Any>()  // qkv (B,T,3C)
                      .Ret<Any>()  // out (B,T,C)
                      .Ret<F32>()  // lse (B,NH,T)
                      .Attr<int64_t>("NH"));

LLMC_CUDA_HANDLER(llmc_cuda_attention_backward, Backward,
                  BindStream()
                      .Arg<Any>()  // out (B,T,C)
                      .Arg<F32>()  // lse (B,NH,T)
                      .Arg<Any>()  // dout (B,T,C)
                      .Arg<Any>()  // qkv (B,T,3C)
                      .Ret<Any>()  // dqkv (B,T,3C)
                      .Ret<F32>()  // delta (B,NH,T): scratch
                      // dq_sum (B,AttentionDqRows(T),C): scratch; B 0 if deterministic or float32
                      .Ret<F32>()
                      .Attr<int64_t>("NH")
                      .Attr<int64_t>("deterministic"));

}  // namespace llmc
