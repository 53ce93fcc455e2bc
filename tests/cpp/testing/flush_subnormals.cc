// Loaded before a program (LD_PRELOAD), lets each of its threads flush subnormal numbers to 0: what
// a library linked with -ffast-math does to the thread that loads it and to those that this starts.
#include <dlfcn.h>
#include <pthread.h>

#include <cstdint>
#include <memory>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

void Flush() noexcept {
#if defined(__SSE2__)
  _mm_setcsr(_mm_getcsr() | 0x8040U);
#elif defined(__aarch64__)
  std::uint64_t control = 0;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  control |= std::uint64_t{1} << 24;
  __asm__ volatile("msr fpcr, %0" : : "r"(control));
#endif
}

struct Begin {
  void* (*start)(void*);
  void* argument;
};

void* BeginFlushed(void* data) {
  const Begin begin = *std::unique_ptr<Begin>(static_cast<Begin*>(data));
  Flush();
  return begin.start(begin.argument);
}

const bool flushed = (Flush(), true);

}  // namespace

// A thread inherits the environment of the one that starts it. That may be the library in the midst
// of a call, where nothing is flushed, so each thread is told again.
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*start)(void*), void* argument) {
  static const auto create =
      reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  auto begin = std::make_unique<Begin>(Begin{start, argument});
  Begin* const given = begin.release();
  const int error = create(thread, attributes, BeginFlushed, given);
  if (error != 0) begin.reset(given);  // no thread took it
  return error;
}
