// `auto`: chooses a method by constants, from shapes, masks and tolerance alone.
#pragma once

#include "methods/method.h"

namespace smyrf {

const AttentionMethod& AutoMethod();

}  // namespace smyrf
