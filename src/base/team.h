// The threads that parallel.cc divides work among. One of three files makes them: team_openmp.cc
// for the library, team_python.cc for the Python extension, team_std.cc for plug-ins, whose host
// has threads of its own.
#pragma once

#include <functional>

namespace smyrf {

/// More threads than processors only wait for each other, and where the system has no more to give
/// libgomp ends the process.
inline constexpr int kThreadsPerProcessor = 4;

/// Threads that a call with `num_threads = 0` uses; 1 in a child forked from a process that had
/// several threads, where those were OpenMP's.
int DefaultThreads();

/// The threads that a section of `asked` threads gets, at most kThreadsPerProcessor a processor.
int TeamSize(int asked);

/// Calls work() on the caller's thread and on others, at most `threads` in all, and returns when
/// every call has. How many there are is open: work() must divide what there is to do by itself. It
/// must not throw.
void RunTeam(int threads, const std::function<void()>& work);

}  // namespace smyrf
