// Threads of the standard library that sleep between sections and wait for no one: the caller does
// the work of those that the system did not wake in time.
#pragma once

#include <functional>

namespace smyrf {

/// Processors that this process may run on.
int Processors();

/// RunTeam (team.h) on the process's own threads. They are made when first needed and end with the
/// process, so this code must not be unloaded.
void RunThreads(int threads, const std::function<void()>& work);

}  // namespace smyrf
