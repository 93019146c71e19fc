// Handler of cached_attention: see cached_attention.h.
#include "cpu/handler.h"

namespace llmc {
namespace {

ffi::Error CachedAttention(ffi::ThreadPool pool, Any qkv, Any keys, Any values, S32 position,
                           AnyOut out, AnyOut new_keys, AnyOut new_values) {
  Checker check("llmc_cached_attention");
  int64_t B = check.Size("keys", keys, 4, 0), NH = check.Size("keys", keys, 4, 1);
  int64_t S = check.Size("keys", keys, 4, 2), HS = check.Size("keys", keys, 4, 3);
  check.Shape("qkv", qkv, {B, 1, 3 * NH * HS});
  check.Shape("values", values, {B, NH, S, HS});
  check.Shape("position", position, {B});
  check.Shape("out", *out, {B, 1, NH * HS});
  for (const Any& buffer : {keys, values, Any(*out), Any(*new_keys), Any(*new_values)})
    check.SameType("cache or out", buffer, qkv);
  // XLA gives a result the memory of its argument
  check.Require(keys.untyped_data() == new_keys->untyped_data() &&
                    values.untyped_data() == new_values->untyped_data(),
                "the cache is not in place");
  for (int64_t b = 0; check.ok() && b < B; ++b) {
    int64_t at = position.typed_data()[b];
    check.Require(0 <= at && at < S, "position " + std::to_string(at) + " of row " +
                                         std::to_string(b) + " is not in a cache of " +
                                         std::to_string(S));
  }
  return RunOn(check, pool, qkv, [&](Threads& threads, auto t) {
    using T = decltype(t);
    On<T>().cached_attention(threads, B, NH, S, HS, In<T>(qkv), position.typed_data(),
                             static_cast<T*>(new_keys->untyped_data()),
                             static_cast<T*>(new_values->untyped_data()), Out<T>(out));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_cached_attention, CachedAttention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()    // qkv (B,1,3C)
                                  .Arg<Any>()    // keys (B,NH,S,HS)
                                  .Arg<Any>()    // values (B,NH,S,HS)
                                  .Arg<S32>()    // position (B)
                                  .Ret<Any>()    // out (B,1,C)
                                  .Ret<Any>()    // keys
                                  .Ret<Any>());  // values

}  // namespace llmc
