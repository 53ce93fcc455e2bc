// The threads that parallel.cc divides work among. One of two files makes them: team_openmp.cc for
// the library, team_std.cc for plug-ins, whose host has threads of its own.
#pragma once

#include <functional>

namespace smyrf {

/// Threads that a call with `num_threads = 0` uses; 1 in a child forked from a process that had
/// several threads, whose pool is gone.
int DefaultThreads();

/// The threads that a section of `asked` threads gets, at most 4 a processor.
int TeamSize(int asked);

/// Calls work() on the caller's thread and on others, at most `threads` in all, and returns when
/// every call has. How many there are is open: work() must divide what there is to do by itself. It
/// must not throw.
void RunTeam(int threads, const std::function<void()>& work);

}  // namespace smyrf
