// `tree`: error-controlled attention over balanced trees (docs/method.md).
#pragma once

#include "methods/method.h"

namespace smyrf {

const AttentionMethod& TreeMethod();

/// The tolerance, which `auto` has too.
const Dial& ToleranceDial();

}  // namespace smyrf
