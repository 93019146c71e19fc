// Handlers of attention: see attention.h.
#include "cpu/handler.h"

namespace llmc {
namespace {

struct Sizes {
  int64_t B, T, C, NH, HS;

  Sizes(Checker& check, const Any& qkv, int64_t heads)
      : B(check.Size("qkv", qkv, 3, 0)), T(check.Size("qkv", qkv, 3, 1)), C(0), NH(heads), HS(0) {
    int64_t width = check.Size("qkv", qkv, 3, 2);
    if (NH < 1 || width % (3 * NH))
      check.Fail("qkv is " + ShapeString(qkv.dimensions()) + " with " + std::to_string(NH) +
                 " heads, expected (B,T,3C) with C divisible by NH");
    else
      C = width / 3, HS = C / NH;
  }
};

ffi::Error AttentionForward(ffi::ThreadPool pool, Any qkv, AnyOut out, F32Out lse, int64_t NH) {
  Checker check("llmc_attention_forward");
  Sizes s(check, qkv, NH);
  check.Shape("out", *out, {s.B, s.T, s.C});
  check.Shape("lse", *lse, {s.B, s.NH, s.T});
  check.SameType("out", *out, qkv);
  return RunOn(check, pool, qkv, [&](Threads& threads, auto t) {
    using T = decltype(t);
    On<T>().attention_forward(threads, s.B, s.T, s.NH, s.HS, In<T>(qkv), Out<T>(out),
                              Out(lse));
  });
}

ffi::Error AttentionBackward(ffi::ThreadPool pool, Any out, F32 lse, Any dout, Any qkv,
                             AnyOut dqkv, int64_t NH) {
  Checker check("llmc_attention_backward");
  Sizes s(check, qkv, NH);
  check.Like("out", out, qkv, {s.B, s.T, s.C});
  check.Like("dout", dout, qkv, {s.B, s.T, s.C});
  check.Shape("lse", lse, {s.B, s.NH, s.T});
  check.Like("dqkv", *dqkv, qkv, {s.B, s.T, 3 * s.C});
  return RunOn(check, pool, qkv, [&](Threads& threads, auto t) {
    using T = decltype(t);
    On<T>().attention_backward(threads, s.B, s.T, s.NH, s.HS, In<T>(out), lse.typed_data(),
                               In<T>(dout), In<T>(qkv), Out<T>(dqkv));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_attention_forward, AttentionForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()  // qkv (B,T,3C)
                                  .Ret<Any>()  // out (B,T,C)
                                  .Ret<F32>()  // lse (B,NH,T)
                                  .Attr<int64_t>("NH"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_attention_backward, AttentionBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()  // out (B,T,C)
                                  .Arg<F32>()  // lse (B,NH,T)
                                  .Arg<Any>()  // dout (B,T,C)
                                  .Arg<Any>()  // qkv (B,T,3C)
                                  .Ret<Any>()  // dqkv (B,T,3C)
                                  .Attr<int64_t>("NH"));

}  // namespace llmc
