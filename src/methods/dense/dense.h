// `dense`: every allowed pair, exactly.
#pragma once

#include "methods/method.h"

namespace smyrf {

const AttentionMethod& DenseMethod();

}  // namespace smyrf
