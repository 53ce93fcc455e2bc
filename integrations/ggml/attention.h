// One node GGML_OP_FLASH_ATTN_EXT by smyrf.
#pragma once

#include "ggml.h"
#include "settings.h"

namespace smyrf::ggml {

/// Whether the plug-in computes a node: from its shapes, types and parameters alone. What it does
/// not take, ggml's own CPU backend does.
bool Takes(const ggml_tensor& node);

/// Computes a node that Takes() accepts. Throws what smyrf::attention throws.
void Attend(const ggml_tensor& node, const Settings& settings, int num_threads);

}  // namespace smyrf::ggml
