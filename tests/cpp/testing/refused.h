// Calls that must be refused.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "smyrf/error.h"

namespace smyrf::testing {

/// By an error of the kind whose message has `message` in it.
inline void ExpectRefused(ErrorKind kind, const std::string& message,
                          const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "no error: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind);
    EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
  }
}

}  // namespace smyrf::testing
