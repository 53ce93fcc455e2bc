// Python's lock (GIL), given back while the library computes.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

namespace smyrf::bindings {

/// Without the lock as long as it lives.
///
/// A thread that wants the lock back when Python has ended gets an end of its own from Python
/// before 3.14: pthread_exit, which unwinds the stack. No destructor lets that pass, so that it
/// would abort the program. The thread waits for the process to end, as from 3.14 on.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil(WithoutGil&&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  WithoutGil& operator=(WithoutGil&&) = delete;
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      while (true) pause();
    }
  }

 private:
  PyThreadState* state_;
};

}  // namespace smyrf::bindings
