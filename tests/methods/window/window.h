// `window`: exact attention in a band. A method of one's own, as HACKING.md says to add it.
#pragma once

#include "methods/method.h"

namespace smyrf {

inline constexpr Method kWindow{128};
/// Where the call gives no window: so many keys before each query's own and so many behind it.
inline constexpr Window kDefaultWindow{128, 128};

const AttentionMethod& WindowMethod();

}  // namespace smyrf
