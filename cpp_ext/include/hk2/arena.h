// Scratch memory that is allocated while a workload's sizes are new and reused ever after.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hk2 {

// take() hands out 64-byte aligned pieces that stay valid until reset(). A reset merges what the
// last round needed into one piece, so a steady workload allocates nothing. Not thread-safe: taken
// by the caller before the parallel region.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  void reset();

  // Uninitialised storage for `count` trivially destructible values; 64 bytes past the end are
  // readable.
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  struct Piece {
    uint8_t* data;
    size_t size;
  };

  void* take_bytes(size_t size);

  std::vector<Piece> pieces_;  // the last one is being filled
  size_t used_ = 0;            // of the last piece
  size_t round_ = 0;           // taken since reset
};

}  // namespace hk2
