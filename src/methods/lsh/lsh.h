// `lsh`: balanced clusters of an asymmetric hash (SMYRF, Daras et al., NeurIPS 2020).
#pragma once

#include "methods/method.h"

namespace smyrf {

const AttentionMethod& LshMethod();

}  // namespace smyrf
