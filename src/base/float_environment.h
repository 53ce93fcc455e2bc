// The arithmetic that results are defined in, whatever the caller has set.
#pragma once

#include <cfenv>

namespace smyrf {

/// While it lives, the thread that made it rounds to nearest, keeps subnormal numbers and traps
/// nothing; afterwards its environment is as before. A caller may have set another one
/// (`torch.set_flush_denormal`, any library linked with -ffast-math, fesetround), for one thread of
/// many: then results would depend on which thread computes them.
class FloatEnvironment {
 public:
  FloatEnvironment() noexcept;
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
  FloatEnvironment(FloatEnvironment&&) = delete;
  FloatEnvironment& operator=(FloatEnvironment&&) = delete;
  ~FloatEnvironment();

 private:
  bool changed_ = true;
  unsigned control_ = 0;   ///< x86: the caller's MXCSR
  std::fenv_t callers_{};  ///< where it was changed
};

}  // namespace smyrf
