// The methods of the library. A new one is a folder, and a line here.
#include "methods/auto/auto.h"
#include "methods/dense/dense.h"
#include "methods/local/local.h"
#include "methods/lsh/lsh.h"
#include "methods/method.h"
#include "methods/tree/tree.h"
#include "methods/window/window.h"

namespace smyrf {

std::span<const AttentionMethod* const> AllMethods() {
  // clang-format off: one a line
  static const AttentionMethod* const all[] = {
      &AutoMethod(),
      &DenseMethod(),
      &LshMethod(),
      &TreeMethod(),
      &LocalMethod(),
      &WindowMethod(),
  };
  // clang-format on
  return all;
}

}  // namespace smyrf
