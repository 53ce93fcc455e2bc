// The whole public API.
#pragma once

#include "smyrf/attention.h"
#include "smyrf/methods.h"
#include "smyrf/version.h"
