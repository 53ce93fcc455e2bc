// `local`: each block of queries sees the keys of its own block and of the two beside it, as in
// models whose attention is local in chunks. A method of one's own whose plan has heads, and which
// has a dial that another method has too.
#pragma once

#include "methods/method.h"

namespace smyrf {

inline constexpr Method kLocal{129};
/// Keys a block, where the call gives no cluster_size.
inline constexpr std::int64_t kDefaultBlock = 64;

const AttentionMethod& LocalMethod();

}  // namespace smyrf
