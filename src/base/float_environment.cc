#include "base/float_environment.h"

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#define SMYRF_HAS_MXCSR 1
#else
#define SMYRF_HAS_MXCSR 0
#endif

namespace smyrf {

#if SMYRF_HAS_MXCSR
namespace {

constexpr unsigned kFlags = 0x3FU;      // what happened so far
constexpr unsigned kDefault = 0x1F80U;  // all exceptions masked, nothing else set

}  // namespace
#endif

FloatEnvironment::FloatEnvironment() noexcept {
#if SMYRF_HAS_MXCSR
  // One cheap instruction tells that there is nothing to do, as there nearly always is.
  control_ = _mm_getcsr();
  changed_ = (control_ & ~kFlags) != kDefault;
  if (!changed_) return;
#endif
  std::fegetenv(&callers_);
  std::fesetenv(FE_DFL_ENV);
#if SMYRF_HAS_MXCSR
  _mm_setcsr(kDefault);  // C says nothing of flushing
#endif
}

FloatEnvironment::~FloatEnvironment() {
  if (!changed_) return;
  std::fesetenv(&callers_);
#if SMYRF_HAS_MXCSR
  _mm_setcsr(control_);
#endif
}

}  // namespace smyrf
