// A CUDA device on the host: runs the blocks of a launch one after another, and the threads of a
// block as fibers that give way to each other only where a CUDA thread may wait: at barriers and at
// the instructions a warp executes together.
//
// What it finds: wrong indices (with AddressSanitizer), wrong masks and tails, fragments and
// swizzles that do not fit together, values read before they are written (shared memory starts as
// NaN), barriers that never open, waits that were left out (see Schedule), and fences, where the
// copy engine or a product reads what a thread stored. What it cannot find: races between threads
// that do not pass a barrier, spilled registers, slowness.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace llmc::emulator {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

constexpr int kWarp = 32;

// The order in which fibers run and asynchronous copies and products are done; a kernel must give
// the same in each. 0: in order, at once. 1: from the last fiber, as late as is allowed. Others:
// seeds of a random order, late.
void SetSchedule(unsigned schedule);
unsigned Schedule();

// The compute capability that launchers see, as 80 or 90.
void SetArchitecture(int architecture);
int Architecture();
int SharedMemoryLimit();  // bytes that a block of that may have

// Threads that do something together: the last one to come does it for all.
struct Meeting {
  const char* what = nullptr;
  int arrived = 0;
  uint64_t generation = 0;
  void* brought[128] = {};
};

// A named barrier (bar.sync, bar.arrive).
struct Barrier {
  int arrived = 0;
  uint64_t generation = 0;
};

// Work that a thread started, committed in groups and waits for: done when it is started or, in
// the late schedules, when the thread waits for its group.
class Groups {
 public:
  void Add(std::function<void()> work);
  void Commit();
  void Wait(size_t but);  // until at most the last `but` groups are still to be done

 private:
  std::vector<std::function<void()>> open_;
  std::vector<std::vector<std::function<void()>>> committed_;
};

struct Thread {
  Dim3 index;
  int number = 0;  // in the block
  bool done = false;
  const char* waits_for = nullptr;
  std::function<bool()> ready;
  Groups copies;  // of cp.async
  Groups stores;  // of bulk copies out of shared memory
  std::shared_ptr<void> products;  // of its warpgroup: see hopper.h
  // What it stored in shared memory, by 4 bytes, and barriers that it initialised: until its fence.
  std::vector<uint32_t> stored;
  std::vector<void*> initialised;
  void* stack_pointer = nullptr;
  void* sanitizer_stack = nullptr;
};

struct Block {
  Dim3 index, size, grid;
  unsigned char* shared = nullptr;  // aligned to 1024 bytes
  size_t shared_size = 0;
  std::vector<int> unfenced;  // of each 4 bytes of it: 1 + the thread in whose `stored` they are
  std::vector<Thread> threads;
  std::vector<Meeting> warps, warpgroups;
  Barrier barriers[16];
  std::vector<std::function<void()>> pending;  // copies into shared memory on their way
};

extern thread_local Block* block;
extern thread_local Thread* thread;

// Runs body() in every thread of every block. Throws std::runtime_error if a block cannot go on.
void Run(Dim3 grid, Dim3 threads, size_t shared_size, const std::function<void()>& body);

// Lets other fibers run until ready(); `what` names it in the message when all wait for ever.
void WaitUntil(const char* what, std::function<bool()> ready);

// Does `work` now or, in the schedules that are late, when nothing else can go on.
void Later(std::function<void()> work);

// Ends the launch with a message that says which thread of which block it was.
[[noreturn]] void Fail(const std::string& message);

// act(brought) by the last of the `size` threads of `meeting` to come; brought[i] is what thread i
// of them came with. They must all come for the same thing.
template <typename Mine, typename Act>
void Meet(Meeting& meeting, int size, int rank, const char* what, Mine& mine, const Act& act) {
  if (meeting.arrived && meeting.what != what)
    Fail(std::string("threads that belong together do different things: ") + meeting.what +
         " and " + what);
  meeting.what = what;
  meeting.brought[rank] = &mine;
  if (++meeting.arrived == size) {
    act(reinterpret_cast<Mine**>(meeting.brought));
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  uint64_t generation = meeting.generation;
  WaitUntil(what, [&meeting, generation] { return meeting.generation != generation; });
}

// Together with the other lanes of the warp.
template <typename Mine, typename Act>
void InWarp(const char* what, Mine& mine, const Act& act) {
  int number = thread->number;
  Meet(block->warps[number / kWarp], kWarp, number % kWarp, what, mine, act);
}

// Together with the other threads of the warpgroup.
template <typename Mine, typename Act>
void InWarpgroup(const char* what, Mine& mine, const Act& act) {
  int number = thread->number;
  Meet(block->warpgroups[number / 128], 128, number % 128, what, mine, act);
}

// bar.sync and, without waiting, bar.arrive.
void BarrierSync(int id, int threads);
void BarrierArrive(int id, int threads);

}  // namespace llmc::emulator
