// Handlers of matmul: see matmul.h.
#include "cpu/handler.h"

namespace llmc {
namespace {

ffi::Error MatmulForward(ffi::ThreadPool pool, Any inp, Any weight, F32 bias, AnyOut out) {
  Checker check("llmc_matmul_forward");
  int64_t B = check.Size("inp", inp, 3, 0), T_ = check.Size("inp", inp, 3, 1);
  int64_t C = check.Size("inp", inp, 3, 2), OC = check.Size("weight", weight, 2, 0);
  check.Shape("weight", weight, {OC, C});
  check.Shape("bias", bias, {OC});
  check.Shape("out", *out, {B, T_, OC});
  check.SameType("out", *out, inp);
  return RunOn(check, pool, inp.element_type(), weight, [&](Threads& threads, auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    On<T, W>().matmul_forward(threads, B * T_, C, OC, In<T>(inp), In<W>(weight),
                              bias.typed_data(), Out<T>(out));
  });
}

ffi::Error MatmulBackward(ffi::ThreadPool pool, Any dout, Any inp, Any weight, F32 /*bias*/,
                          AnyOut dinp, AnyOut dweight, F32Out dbias) {
  Checker check("llmc_matmul_backward");
  int64_t B = check.Size("inp", inp, 3, 0), T_ = check.Size("inp", inp, 3, 1);
  int64_t C = check.Size("inp", inp, 3, 2), OC = check.Size("weight", weight, 2, 0);
  check.Shape("weight", weight, {OC, C});
  check.Like("dout", dout, inp, {B, T_, OC});
  check.Like("dinp", *dinp, inp, {B, T_, C});
  LikeOrLeftOut(check, "dweight", *dweight, inp, OC, C);
  check.Shape("dbias", *dbias, {OC});
  return RunOn(check, pool, inp.element_type(), weight, [&](Threads& threads, auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    On<T, W>().matmul_backward(threads, B * T_, C, OC, In<T>(dout), In<T>(inp), In<W>(weight),
                               Out<T>(dinp), OutOrNull<T>(dweight), Out(dbias));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_matmul_forward, MatmulForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()   // inp (B,T,C)
                                  .Arg<Any>()   // weight (OC,C)
                                  .Arg<F32>()   // bias (OC)
                                  .Ret<Any>());  // out (B,T,OC)

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_matmul_backward, MatmulBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()   // dout (B,T,OC)
                                  .Arg<Any>()   // inp (B,T,C)
                                  .Arg<Any>()   // weight (OC,C)
                                  .Arg<F32>()   // bias (OC)
                                  .Ret<Any>()   // dinp (B,T,C)
                                  .Ret<Any>()   // dweight (OC,C) or (0,C)
                                  .Ret<F32>());  // dbias (OC)

}  // namespace llmc
