#pragma once

namespace smyrf {

/// Whether this process was forked from one that had several threads. OpenMP's pool does not
/// survive that: who used it here would wait forever for threads that exist in the parent only. The
/// pool may be shared with another library (PyTorch), so what counts is whether the parent had
/// threads, not whether we started them.
bool PoolIsLost();

}  // namespace smyrf
