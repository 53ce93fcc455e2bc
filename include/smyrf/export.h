// The names that a shared smyrf shows to programs. It hides every other one.
#pragma once

#if defined(__GNUC__)
#define SMYRF_API __attribute__((visibility("default")))
#else
#define SMYRF_API
#endif
