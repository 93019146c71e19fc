// Splits a handler's work over the threads that XLA gives it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "cpu/types.h"
#include "xla/ffi/api/ffi.h"

namespace llmc {

// XLA's pool and the calling thread.
//
// Handlers themselves run on threads of this pool, so waiting for a scheduled helper to start
// could wait for ever. The caller works too and may do everything alone; at the end it waits only
// for tasks that some thread has already begun. A helper that comes late finds nothing left and
// touches nothing but the shared state. The first exception of a task is thrown again.
class PoolThreads final : public Threads {
 public:
  explicit PoolThreads(xla::ffi::ThreadPool& pool) : pool_(pool) {}

  // XLA says 0 where it cannot say: then the caller is alone.
  int64_t count() const override { return std::max<int64_t>(1, pool_.num_threads()); }

  void Run(int64_t n, void (*task)(void*, int64_t), void* context) override {
    struct State {
      std::atomic<int64_t> next{0}, done{0};
      std::mutex mutex;
      std::exception_ptr failure;
    };
    auto state = std::make_shared<State>();
    auto work = [state, n, task, context] {
      for (int64_t i; (i = state->next.fetch_add(1)) < n;) {
        try {
          task(context, i);
        } catch (...) {
          std::lock_guard<std::mutex> lock(state->mutex);
          if (!state->failure) state->failure = std::current_exception();
        }
        state->done.fetch_add(1);
      }
    };
    int64_t helpers = std::min<int64_t>(count(), n) - 1;
    try {
      for (int64_t i = 0; i < helpers; ++i) pool_.Schedule([work] { work(); });
    } catch (const std::bad_alloc&) {  // those that are there will do, and must not be left alone
    }
    work();
    while (state->done.load() < n) std::this_thread::yield();
    if (state->failure) std::rethrow_exception(state->failure);
  }

 private:
  xla::ffi::ThreadPool& pool_;
};

}  // namespace llmc
