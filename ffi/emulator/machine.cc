#include "emulator/machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the emulator switches between fibers on x86-64 only"
#endif

// Saves what a function must preserve on its own stack and goes on where the other stack was left.
extern "C" void llmc_switch_stack(void** save, void* load);
asm(R"(
.text
.type llmc_switch_stack, @function
llmc_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size llmc_switch_stack, .-llmc_switch_stack
)");

namespace llmc::emulator {

thread_local Block* block = nullptr;
thread_local Thread* thread = nullptr;

namespace {

unsigned schedule = 0;
int architecture = 90;

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackSize = 1 << 20;
#else
constexpr size_t kStackSize = 1 << 18;
#endif

// The stacks of one block's fibers, kept from launch to launch.
class Stacks {
 public:
  ~Stacks() {
    for (unsigned char* stack : stacks_) munmap(stack, kStackSize);
  }
  unsigned char* operator[](size_t i) {
    while (stacks_.size() <= i) {
      void* stack = mmap(nullptr, kStackSize, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED) throw std::bad_alloc();
      stacks_.push_back(static_cast<unsigned char*>(stack));
    }
    return stacks_[i];
  }

 private:
  std::vector<unsigned char*> stacks_;
};
thread_local Stacks stacks;

// The fiber that runs blocks.
thread_local void* scheduler_stack_pointer = nullptr;
thread_local const std::function<void()>* kernel = nullptr;
thread_local std::exception_ptr failure;
// Whether the last launch failed and left fibers in the middle of a kernel.
thread_local bool last_failed = false, this_failed = false;

#if defined(__SANITIZE_ADDRESS__)
thread_local const void* scheduler_stack = nullptr;
thread_local size_t scheduler_stack_size = 0;

void ResumeFiber(Thread& fiber) {
  void* mine = nullptr;
  __sanitizer_start_switch_fiber(&mine, stacks[fiber.number], kStackSize);
  llmc_switch_stack(&scheduler_stack_pointer, fiber.stack_pointer);
  __sanitizer_finish_switch_fiber(mine, nullptr, nullptr);
}
void LeaveFiber(bool for_ever) {
  Thread* mine = thread;
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &mine->sanitizer_stack, scheduler_stack,
                                 scheduler_stack_size);
  llmc_switch_stack(&mine->stack_pointer, scheduler_stack_pointer);
  __sanitizer_finish_switch_fiber(mine->sanitizer_stack, &scheduler_stack, &scheduler_stack_size);
}
void EnterFiber() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
}
#else
void ResumeFiber(Thread& fiber) {
  llmc_switch_stack(&scheduler_stack_pointer, fiber.stack_pointer);
}
void LeaveFiber(bool) { llmc_switch_stack(&thread->stack_pointer, scheduler_stack_pointer); }
void EnterFiber() {}
#endif

// The first function of a fiber.
void FiberMain() {
  EnterFiber();
  try {
    (*kernel)();
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  thread->done = true;
  LeaveFiber(/*for_ever=*/true);
  std::abort();
}

void PrepareFiber(Thread& fiber) {
  unsigned char* stack = stacks[fiber.number];
#if defined(__SANITIZE_ADDRESS__)
  // What the last fiber left poisoned: its first frames or, after a failure, all of them.
  size_t used = last_failed ? kStackSize : 4096;
  __asan_unpoison_memory_region(stack + kStackSize - used, used);
#endif
  // What llmc_switch_stack pops: six registers and where to go on. At the first instruction of a
  // function the stack pointer is 8 bytes off a multiple of 16.
  void** top = reinterpret_cast<void**>(stack + kStackSize) - 1;
  *--top = reinterpret_cast<void*>(&FiberMain);
  top -= 6;
  std::fill(top, top + 6, nullptr);
  fiber.stack_pointer = top;
}

bool DoPending(std::mt19937& random) {
  auto& pending = block->pending;
  if (pending.empty()) return false;
  size_t i = schedule > 1 ? random() % pending.size() : 0;
  auto work = std::move(pending[i]);
  pending.erase(pending.begin() + i);
  work();
  return true;
}

std::string Where(const Thread& t) {
  return "thread " + std::to_string(t.number) + " of block (" + std::to_string(block->index.x) +
         "," + std::to_string(block->index.y) + "," + std::to_string(block->index.z) + ")";
}

void RunBlock(std::mt19937& random) {
  std::vector<int> order(block->threads.size());
  std::iota(order.begin(), order.end(), 0);
  if (schedule == 1) std::reverse(order.begin(), order.end());
  size_t running = order.size();
  while (running) {
    if (schedule > 1) std::shuffle(order.begin(), order.end(), random);
    bool progress = false;
    for (int i : order) {
      Thread& t = block->threads[i];
      if (t.done || (t.ready && !t.ready())) continue;
      t.ready = nullptr;
      thread = &t;
      ResumeFiber(t);
      progress = true;
      running -= t.done;
      if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
    }
    if (!progress && !DoPending(random)) {
      const Thread& t = *std::find_if(block->threads.begin(), block->threads.end(),
                                      [](const Thread& t) { return !t.done; });
      throw std::runtime_error("emulator: no thread can go on; " + Where(t) + " waits for " +
                               t.waits_for);
    }
  }
  while (DoPending(random)) {
  }
}

void PrepareBlock(Block& b) {
  std::memset(b.shared, 0xff, b.shared_size);
  b.unfenced.assign(b.shared_size / 4 + 1, 0);
  for (size_t i = 0; i < b.threads.size(); ++i) {
    Thread& t = b.threads[i];
    t = Thread();
    t.number = static_cast<int>(i);
    t.index = Dim3(i % b.size.x, i / b.size.x % b.size.y, i / b.size.x / b.size.y);
    PrepareFiber(t);
  }
  std::fill(b.warps.begin(), b.warps.end(), Meeting());
  std::fill(b.warpgroups.begin(), b.warpgroups.end(), Meeting());
  std::fill(std::begin(b.barriers), std::end(b.barriers), Barrier());
  b.pending.clear();
}

}  // namespace

void SetSchedule(unsigned s) { schedule = s; }
unsigned Schedule() { return schedule; }
void SetArchitecture(int a) { architecture = a; }
int Architecture() { return architecture; }
int SharedMemoryLimit() {
  return architecture == 80 ? 163 << 10 : architecture == 90 || architecture == 100 ? 227 << 10
                                                                                    : 99 << 10;
}

void Run(Dim3 grid, Dim3 threads, size_t shared_size, const std::function<void()>& body) {
  size_t count = size_t{threads.x} * threads.y * threads.z;
  if (count == 0 || count > 1024) throw std::runtime_error("emulator: invalid number of threads");
  if (shared_size > static_cast<size_t>(SharedMemoryLimit()))
    throw std::runtime_error("emulator: too much shared memory");
  if (grid.x == 0 || grid.x > 0x7fffffff || grid.y == 0 || grid.y > 65535 || grid.z == 0 ||
      grid.z > 65535)
    throw std::runtime_error("emulator: invalid number of blocks");
  void* shared = nullptr;
  if (posix_memalign(&shared, 1024, shared_size)) throw std::bad_alloc();
  std::unique_ptr<void, void (*)(void*)> memory(shared, std::free);

  Block b;
  b.size = threads;
  b.grid = grid;
  b.shared = static_cast<unsigned char*>(shared);
  b.shared_size = shared_size;
  b.threads.resize(count);
  b.warps.resize((count + kWarp - 1) / kWarp);
  b.warpgroups.resize((count + 127) / 128);
  block = &b;
  kernel = &body;
  std::mt19937 random(schedule);
  last_failed = std::exchange(this_failed, true);
  size_t blocks = size_t{grid.x} * grid.y * grid.z;
  for (size_t i = 0; i < blocks; ++i) {
    size_t n = schedule == 1 ? blocks - 1 - i : i;
    b.index = Dim3(n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y);
    PrepareBlock(b);
    RunBlock(random);
  }
  this_failed = false;
}

void WaitUntil(const char* what, std::function<bool()> ready) {
  if (ready()) return;
  thread->waits_for = what;
  thread->ready = std::move(ready);
  LeaveFiber(/*for_ever=*/false);
}

void Later(std::function<void()> work) {
  if (schedule == 0)
    work();
  else
    block->pending.push_back(std::move(work));
}

void Groups::Add(std::function<void()> work) {
  if (schedule == 0)
    work();
  else
    open_.push_back(std::move(work));
}

void Groups::Commit() { committed_.push_back(std::exchange(open_, {})); }

void Groups::Wait(size_t but) {
  for (; committed_.size() > but; committed_.erase(committed_.begin()))
    for (auto& work : committed_.front()) work();
}

void Fail(const std::string& message) {
  throw std::runtime_error("emulator: " + Where(*thread) + ": " + message);
}

void BarrierArrive(int id, int threads) {
  if (id < 0 || id >= 16 || threads % kWarp) Fail("no such barrier");
  Barrier& barrier = block->barriers[id];
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
}

void BarrierSync(int id, int threads) {
  Barrier& barrier = block->barriers[id];
  uint64_t generation = barrier.generation;
  BarrierArrive(id, threads);
  WaitUntil("a barrier", [&barrier, generation] { return barrier.generation != generation; });
}

}  // namespace llmc::emulator

extern "C" void llmc_emulator_schedule(unsigned schedule) {
  llmc::emulator::SetSchedule(schedule);
}
extern "C" void llmc_emulator_architecture(int architecture) {
  llmc::emulator::SetArchitecture(architecture);
}
