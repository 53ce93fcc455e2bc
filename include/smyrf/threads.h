// The threads that calls compute on: a program may hand in its own.
#pragma once

#include <functional>
#include <memory>

#include "smyrf/export.h"
namespace smyrf {

/// Threads that share the work of a call (Options::thread_pool). A call of attention asks for them
/// once for each of its parallel sections, one after the other; a section too small for a second
/// thread does not ask. Results have the same bits on every pool.
class SMYRF_API ThreadPool {
 public:
  ThreadPool() = default;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ThreadPool(ThreadPool&&) = delete;
  ThreadPool& operator=(ThreadPool&&) = delete;
  virtual ~ThreadPool() = default;

  /// The threads that a call with Options::num_threads = 0 asks for, the caller's among them; less
  /// than 1 counts as 1.
  virtual int size() const = 0;

  /// Calls work() on the caller's thread and side by side on others, on at most `threads` in all,
  /// and returns when every call of work() has returned; none may begin later. `threads` is 2 or
  /// more.
  ///
  /// - Each work() takes pieces of the section until none is left, so how many threads call it is
  ///   the pool's choice: fewer are only slower, and a call that begins late, but before run()
  ///   returns, finds nothing to do.
  ///   What is left when run() returns, the caller does alone.
  /// - work() throws nothing. run() may throw where it has no call of work() in progress: the call
  ///   of attention throws that exception on, and its outputs are not complete.
  /// - The library calls run() from the thread that called it, never from inside work(). A program
  ///   that calls the library from the pool's own threads, or from several threads at a time, needs
  ///   a pool that allows it: the library's do, and a call that finds the threads taken works
  ///   alone.
  /// - Threads end at a fork: a pool that is used in the child must notice. The library's do.
  virtual void run(int threads, const std::function<void()>& work) = 0;
};

/// The pool of calls that name none: OpenMP's threads (the program's own where it uses OpenMP), or
/// what this build of the library has in their place. size() is as many as OpenMP would use;
/// run() takes at most 4 a processor. Lives as long as the process.
SMYRF_API ThreadPool& default_thread_pool();

/// The most threads that a call with this Options::num_threads runs on in the default pool.
SMYRF_API int call_threads(int num_threads = 0);

/// A pool of std::threads that end with it: `threads` in all, at least 1, the caller's among them,
/// and at most 4 a processor. They are made when first needed, as many as the system gives, and
/// sleep between sections. A section does not wait for a thread that the system has not woken: the
/// caller does its part. Of calls at the same time one has the threads, the others work alone. In a
/// forked child the pool makes new ones. Throws Error where threads is less than 1.
SMYRF_API std::unique_ptr<ThreadPool> make_thread_pool(int threads);

}  // namespace smyrf
