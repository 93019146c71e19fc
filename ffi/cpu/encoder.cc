// Handlers of encoder: see encoder.h.
#include "cpu/handler.h"

namespace llmc {
namespace {

void CheckTokens(Checker& check, const S32& inp, int64_t Vp) {
  for (size_t n = 0; n < inp.element_count(); ++n)
    if (inp.typed_data()[n] < 0 || inp.typed_data()[n] >= Vp)
      return check.Fail("token " + std::to_string(inp.typed_data()[n]) + " at " +
                        std::to_string(n) + " is not below Vp = " + std::to_string(Vp));
}

ffi::Error EncoderForward(ffi::ThreadPool pool, S32 inp, Any wte, Any wpe, AnyOut out) {
  Checker check("llmc_encoder_forward");
  int64_t B = check.Size("inp", inp, 2, 0), T_ = check.Size("inp", inp, 2, 1);
  int64_t Vp = check.Size("wte", wte, 2, 0), C = check.Size("wte", wte, 2, 1);
  int64_t max_T = check.Size("wpe", wpe, 2, 0);
  check.Shape("wpe", wpe, {max_T, C});
  check.Shape("out", *out, {B, T_, C});
  check.SameType("wpe", wpe, wte);
  check.Require(T_ <= max_T, "T is " + std::to_string(T_) + " and wpe has " +
                                 std::to_string(max_T) + " positions");
  CheckTokens(check, inp, Vp);
  return RunOn(check, pool, out->element_type(), wte, [&](Threads& threads, auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    On<T, W>().encoder_forward(threads, B * T_, T_, C, inp.typed_data(), In<W>(wte), In<W>(wpe),
                               Out<T>(out));
  });
}

ffi::Error EncoderBackward(ffi::ThreadPool pool, Any dout, S32 inp, F32 dwte_so_far, Any wpe,
                           F32Out dwte, F32Out dwpe) {
  Checker check("llmc_encoder_backward");
  int64_t B = check.Size("dout", dout, 3, 0), T_ = check.Size("dout", dout, 3, 1);
  int64_t C = check.Size("dout", dout, 3, 2), max_T = check.Size("wpe", wpe, 2, 0);
  int64_t Vp = check.Size("dwte", dwte_so_far, 2, 0);
  check.Shape("inp", inp, {B, T_});
  check.Shape("dwte", dwte_so_far, {Vp, C});
  check.Shape("wpe", wpe, {max_T, C});
  check.Shape("dwpe", *dwpe, {max_T, C});
  check.Require(T_ <= max_T, "T is " + std::to_string(T_) + " and wpe has " +
                                 std::to_string(max_T) + " positions");
  check.Require(dwte->typed_data() == dwte_so_far.typed_data(), "dwte is not added to in place");
  CheckTokens(check, inp, Vp);
  return RunOn(check, pool, dout, [&](Threads& threads, auto t) {
    using T = decltype(t);
    On<T>().encoder_backward(threads, B, T_, C, max_T, In<T>(dout), inp.typed_data(),
                             Out(dwte), Out(dwpe));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_encoder_forward, EncoderForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<S32>()   // inp (B,T)
                                  .Arg<Any>()   // wte (Vp,C)
                                  .Arg<Any>()   // wpe (maxT,C)
                                  .Ret<Any>());  // out (B,T,C)

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_encoder_backward, EncoderBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()   // dout (B,T,C)
                                  .Arg<S32>()   // inp (B,T)
                                  .Arg<F32>()   // dwte (Vp,C) so far
                                  .Arg<Any>()   // wpe (maxT,C), for its shape
                                  .Ret<F32>()   // dwte (Vp,C), in the place of the argument
                                  .Ret<F32>());  // dwpe (maxT,C)

}  // namespace llmc
