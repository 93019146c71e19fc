// Splits a handler's work over the threads that XLA gives it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace llmc {

// Runs task(0), ..., task(n - 1), in any order, on the pool and on the calling thread; returns
// when all have ended. Rethrows the first exception of a task.
//
// Handlers themselves run on threads of this pool, so waiting for a scheduled helper to start
// could wait for ever. The caller works too and may do everything alone; at the end it waits only
// for tasks that some thread has already begun. A helper that comes late finds nothing left and
// touches nothing but the shared state.
template <typename Task>
void ParallelFor(xla::ffi::ThreadPool& pool, int64_t n, const Task& task) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::exception_ptr failure;
  };
  auto state = std::make_shared<State>();
  auto work = [state, n, &task] {
    for (int64_t i; (i = state->next.fetch_add(1)) < n;) {
      try {
        task(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(state->mutex);
        if (!state->failure) state->failure = std::current_exception();
      }
      state->done.fetch_add(1);
    }
  };
  int64_t helpers = std::min<int64_t>(pool.num_threads(), n) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([work] { work(); });
  work();
  while (state->done.load() < n) std::this_thread::yield();
  if (state->failure) std::rethrow_exception(state->failure);
}

}  // namespace llmc
