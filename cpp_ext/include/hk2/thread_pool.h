// Persistent workers for parallel regions of a few microseconds to a few seconds.
//
// The calling thread is worker 0, so runnable threads never exceed `size`. Workers spin for a
// moment after a region, because the next layer comes soon, then sleep. One region runs at a time;
// callers from other threads wait their turn.
#pragma once

#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "hk2/arena.h"

namespace hk2 {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until done(). Yields after tens of microseconds, so that a thread without a core of its own
// gets one.
template <class Done>
void spin_until(Done done) {
  constexpr int kSpins = 512;
  for (int i = 0; !done(); ++i) {
    if (i < kSpins) {
      pause_cpu();
    } else {
      sched_yield();
    }
  }
}

// All threads of a region meet here. Spins, then yields: right also with more threads than cores.
class Barrier {
 public:
  void reset(int threads);
  void wait();

 private:
  alignas(64) std::atomic<int> missing_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  int threads_ = 0;
};

// Hands out task numbers to whoever asks next.
class TaskCounter {
 public:
  void reset() { next_.store(0, std::memory_order_relaxed); }
  int64_t take() { return next_.fetch_add(1, std::memory_order_relaxed); }

 private:
  alignas(64) std::atomic<int64_t> next_{0};
};

// Worker's part [begin, end) of `total` things cut into nearly equal contiguous parts.
struct Share {
  int64_t begin, end;
  Share(int64_t total, int worker, int workers)
      : begin(total * worker / workers), end(total * (worker + 1) / workers) {}
};

// The size of tasks that workers take one by one: a multiple of `smallest`, at most `largest`
// (itself such a multiple), and small enough for about eight tasks per worker.
inline int64_t task_size(int64_t total, int workers, int64_t smallest, int64_t largest) {
  const int64_t size = total / (8 * workers) / smallest * smallest;
  return size < smallest ? smallest : size > largest ? largest : size;
}

// What a pool has done since it was made, for whoever watches it.
struct PoolCounters {
  std::atomic<uint64_t> busy_ns{0};       // leased
  std::atomic<uint64_t> weight_bytes{0};  // stored weights that products read
  std::atomic<uint64_t> experts{0};       // experts of tokens, computed here
  std::atomic<uint64_t> skipped{0};       // experts of tokens that were -1: computed elsewhere
};

class ThreadPool {
 public:
  // Workers 1.. are pinned to cpus[1..] if cpus is not empty; worker 0 is whoever calls, and is
  // left as it is. nodes[worker]: the NUMA node of its CPU, counted from 0 without gaps; empty: all
  // on one. std::invalid_argument: num_threads < 1, or cpus neither empty nor num_threads CPUs this
  // process may use, or nodes otherwise.
  ThreadPool(int num_threads, const std::vector<int>& cpus, const std::vector<int>& nodes = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }
  int nodes() const { return num_nodes_; }
  PoolCounters& counters() { return counters_; }

  // Exclusive use of the pool and of its scratch memory, from before the first region to after the
  // last.
  class Lease {
   public:
    explicit Lease(ThreadPool& pool)
        : pool_(pool), lock_(pool.lease_), start_(std::chrono::steady_clock::now()) {
      pool.arena_.reset();
    }
    ~Lease() {
      const std::chrono::nanoseconds busy = std::chrono::steady_clock::now() - start_;
      counters().busy_ns += static_cast<uint64_t>(busy.count());
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    PoolCounters& counters() { return pool_.counters_; }
    Arena& arena() { return pool_.arena_; }
    int workers() const { return pool_.usable_workers(); }
    int nodes() const { return pool_.num_nodes_; }
    int node(int worker) const { return pool_.nodes_[static_cast<size_t>(worker)]; }

    // Calls body(worker) on every worker, 0 <= worker < workers(), and returns when all have
    // returned. body must not throw. Inside, barrier() makes all workers meet.
    template <class Body>
    void run(Body&& body) {
      pool_.run(
          [](void* b, int worker) { (*static_cast<std::remove_reference_t<Body>*>(b))(worker); },
          &body);
    }
    void barrier() { pool_.barrier_.wait(); }

   private:
    ThreadPool& pool_;
    std::lock_guard<std::mutex> lock_;
    const std::chrono::steady_clock::time_point start_;
  };

 private:
  using Function = void (*)(void* context, int worker);

  int usable_workers() const;
  void run(Function function, void* context);
  void worker_main(int worker);
  bool wait_for_region(uint32_t seen);
  void join();

  const int size_;
  const std::vector<int> nodes_;  // [workers]
  const int num_nodes_;
  const int process_;  // threads do not survive fork: a child computes on the calling thread alone
  std::mutex lease_;
  Arena arena_;
  PoolCounters counters_;
  Barrier barrier_;
  Function function_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> region_{0};  // counts regions; workers sleep on it
  alignas(64) std::atomic<int> running_{0};
  alignas(64) std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

}  // namespace hk2
