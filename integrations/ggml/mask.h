// What a mask of ggml means. A mask is known only when a graph is computed: numbers, a row a query.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/run.h"

namespace smyrf::ggml {

/// A mask of (rows, keys) float16: 0 where a query sees a key, -inf where it doesn't, or any other
/// number, which is added to the logit.
struct MaskView {
  const std::byte* data = nullptr;
  std::int64_t row_bytes = 0;
  std::int64_t rows = 0;
  std::int64_t keys = 0;
};

/// Neighbouring rows with a pattern that attention can take without the mask.
struct Group {
  enum class Kind {
    kNothing,    ///< no row sees a key
    kRectangle,  ///< every row sees keys [first_key, end_key)
    kCausal,     ///< lower right in [first_key, end_key): each row sees one key more than the last
    kMask,       ///< anything else: keys [first_key, end_key) through the mask
  };
  Kind kind = Kind::kNothing;
  std::int64_t first_row = 0, end_row = 0;
  std::int64_t first_key = 0, end_key = 0;
  /// kCausal: keys before its own that a row sees; -1: all from first_key on.
  std::int64_t window = -1;

  std::int64_t rows() const { return end_row - first_row; }
  std::int64_t keys() const { return end_key - first_key; }
};

/// The groups of a mask, in order, each row in one. Reads the mask once.
std::vector<Group> Recognise(const MaskView& mask, const Run& run);

}  // namespace smyrf::ggml
