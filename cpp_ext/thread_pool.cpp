#include "hk2/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <stdexcept>
#include <string>

namespace hk2 {
namespace {

// How long a worker waits for the next region before it sleeps: longer than the GPU's part of a
// layer, so that a step of decode wakes nobody.
constexpr auto kAwake = std::chrono::milliseconds(1);

// A futex rather than a condition variable, whose destructor would wait for sleepers that a forked
// child does not have.
void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr,
          nullptr, 0);
}
void wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr,
          nullptr, 0);
}
static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t),
              "the kernel reads the atomic as a plain word");

void pin(std::thread& thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);
}

void check_cpus(int num_threads, const std::vector<int>& cpus) {
  if (num_threads < 1 || num_threads > CPU_SETSIZE)
    throw std::invalid_argument("num_threads: " + std::to_string(num_threads) + ", expected 1.." +
                                std::to_string(CPU_SETSIZE));
  if (cpus.empty()) return;
  if (static_cast<int>(cpus.size()) != num_threads)
    throw std::invalid_argument(
        "cpus: " + std::to_string(cpus.size()) +
        " entries, expected none or num_threads = " + std::to_string(num_threads));
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof allowed, &allowed);
  for (int cpu : cpus)
    if (cpu < 0 || cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &allowed))
      throw std::invalid_argument("cpus: " + std::to_string(cpu) +
                                  " is not a CPU this process may use");
}

// Worker by worker, as given or all zero.
std::vector<int> check_nodes(int num_threads, const std::vector<int>& nodes) {
  if (nodes.empty()) return std::vector<int>(static_cast<size_t>(num_threads), 0);
  if (static_cast<int>(nodes.size()) != num_threads)
    throw std::invalid_argument(
        "nodes: " + std::to_string(nodes.size()) +
        " entries, expected none or num_threads = " + std::to_string(num_threads));
  const int last = *std::max_element(nodes.begin(), nodes.end());
  for (int node = 0; node <= last; ++node)
    if (std::find(nodes.begin(), nodes.end(), node) == nodes.end())
      throw std::invalid_argument("nodes: no worker on node " + std::to_string(node) +
                                  ", expected numbers without gaps");
  if (*std::min_element(nodes.begin(), nodes.end()) < 0)
    throw std::invalid_argument("nodes: a negative number, expected 0 and above");
  return nodes;
}

}  // namespace

void Barrier::reset(int threads) {
  threads_ = threads;
  missing_.store(threads, std::memory_order_relaxed);
}

void Barrier::wait() {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (missing_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    missing_.store(threads_, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
  } else {
    spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
  }
}

ThreadPool::ThreadPool(int num_threads, const std::vector<int>& cpus, const std::vector<int>& nodes)
    : size_((check_cpus(num_threads, cpus), num_threads)),
      nodes_(check_nodes(num_threads, nodes)),
      num_nodes_(*std::max_element(nodes_.begin(), nodes_.end()) + 1),
      process_(getpid()) {
  try {
    for (int worker = 1; worker < size_; ++worker) {
      threads_.emplace_back([this, worker] { worker_main(worker); });
      if (!cpus.empty()) pin(threads_.back(), cpus[worker]);
    }
  } catch (...) {  // the system's limit of threads: end those that started
    join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (getpid() == process_) {
    join();
  } else {
    for (std::thread& thread : threads_) thread.detach();  // they live in the parent
  }
}

void ThreadPool::join() {
  stop_.store(true);
  region_.fetch_add(1);
  wake_all(region_);
  for (std::thread& thread : threads_) thread.join();
}

int ThreadPool::usable_workers() const { return getpid() == process_ ? size_ : 1; }

void ThreadPool::run(Function function, void* context) {
  const int workers = usable_workers();
  barrier_.reset(workers);
  if (workers > 1) {
    function_ = function;
    context_ = context;
    running_.store(workers - 1, std::memory_order_relaxed);
    // Sequentially consistent, like the worker's announcement of its sleep: one of the two sees the
    // other.
    region_.fetch_add(1);
    if (sleeping_.load() > 0) wake_all(region_);
  }
  function(context, 0);
  if (workers > 1) spin_until([&] { return running_.load(std::memory_order_acquire) == 0; });
}

// Returns false when the pool ends.
bool ThreadPool::wait_for_region(uint32_t seen) {
  const auto asleep_at = std::chrono::steady_clock::now() + kAwake;
  while (region_.load() == seen) {
    for (int i = 0; i < 64 && region_.load(std::memory_order_acquire) == seen; ++i) pause_cpu();
    if (std::chrono::steady_clock::now() < asleep_at) continue;
    sleeping_.fetch_add(1);
    sleep_while(region_, seen);  // returns at once if the region has begun meanwhile
    sleeping_.fetch_sub(1);
  }
  return !stop_.load();
}

void ThreadPool::worker_main(int worker) {
  uint32_t seen = 0;
  while (wait_for_region(seen)) {
    ++seen;
    function_(context_, worker);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace hk2
