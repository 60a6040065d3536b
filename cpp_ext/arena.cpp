#include "hk2/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace hk2 {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

uint8_t* allocate(size_t size) {
  const size_t alignment = size >= kHugePage ? kHugePage : 64;
  void* data = std::aligned_alloc(alignment, round_up(size, alignment));
  if (!data) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (alignment == kHugePage)
    madvise(data, round_up(size, alignment), MADV_HUGEPAGE);  // a hint: failure is harmless
#endif
  return static_cast<uint8_t*>(data);
}

}  // namespace

Arena::~Arena() {
  for (const Piece& piece : pieces_) std::free(piece.data);
}

void Arena::reset() {
  if (pieces_.size() > 1) {
    for (const Piece& piece : pieces_) std::free(piece.data);
    pieces_.clear();
    pieces_.push_back({allocate(round_), round_});
  }
  used_ = round_ = 0;
}

void* Arena::take_bytes(size_t size) {
  size = round_up(size + 64, 64);
  if (pieces_.empty() || pieces_.back().size - used_ < size) {
    const size_t fresh = std::max(size, size_t{1} << 16);
    pieces_.push_back({allocate(fresh), fresh});
    used_ = 0;
  }
  void* result = pieces_.back().data + used_;
  used_ += size;
  round_ += size;
  return result;
}

}  // namespace hk2
