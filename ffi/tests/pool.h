// The threads that the driver gives to kernels.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/types.h"

namespace llmc {

// In which order a pool begins its tasks: kernels must not care.
enum class Order { kAscending, kDescending };

// `count` threads, the calling one among them. A helper that wakes late finds its job without
// tasks left and touches nothing else, so Run waits for tasks and not for helpers.
class Pool final : public Threads {
 public:
  Pool(int64_t count, Order order) : order_(order) {
    for (int64_t i = 1; i < count; ++i) helpers_.emplace_back([this] { Help(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  int64_t count() const override { return static_cast<int64_t>(helpers_.size()) + 1; }

  void Run(int64_t n, void (*task)(void*, int64_t), void* context) override {
    auto job = std::make_shared<Job>(n, task, context);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
    }
    changed_.notify_all();
    Work(*job);
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return job->done == n; });
  }

 private:
  struct Job {
    Job(int64_t n, void (*task)(void*, int64_t), void* context)
        : n(n), task(task), context(context) {}

    const int64_t n;
    void (*const task)(void*, int64_t);
    void* const context;
    std::atomic<int64_t> next{0};
    int64_t done = 0;  // guarded by mutex_
  };

  void Work(Job& job) {
    for (int64_t i; (i = job.next.fetch_add(1)) < job.n;) {
      job.task(job.context, order_ == Order::kAscending ? i : job.n - 1 - i);
      std::lock_guard<std::mutex> lock(mutex_);
      if (++job.done == job.n) changed_.notify_all();
    }
  }

  void Help() {
    std::shared_ptr<Job> last;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return stop_ || job_ != last; });
        if (stop_) return;
        last = job_;
      }
      Work(*last);
    }
  }

  const Order order_;
  std::mutex mutex_;
  std::condition_variable changed_;  // job_, stop_ or a job's done
  std::shared_ptr<Job> job_;
  bool stop_ = false;
  std::vector<std::thread> helpers_;
};

}  // namespace llmc
