// Which nodes a block of queries opens: coarse to fine, by expected error.
#pragma once

#include <cstdint>
#include <vector>

#include "methods/tree/kernels/nodes.h"
#include "smyrf/plan.h"

namespace smyrf {

/// What one block evaluates. Together `ranges` and `closed` cover every key once.
struct Opening {
  std::vector<std::int32_t> closed;  ///< nodes that their summaries stand for
  std::vector<float> closed_logits;  ///< (closed, kTreeRows): as kernels::NodeLogits gives them
  std::vector<KeyRange> ranges;      ///< exact keys: the sinks, then opened leaves, ascending
};

/// How the nodes of a head are scored.
struct Scoring {
  float mass_weight = 0.0F;
  bool near_keys = false;  ///< queries know the keys at and next to their own position
};

/// Opens nodes whose score sqrt(mean_i(share_i^2 r_i (s^2 + mass_weight min(1, r_i / 4)))) is above
/// `threshold`: to first order the error that the node's summary leaves in query i's output, RMS
/// over the block. share_i: the node's part of query i's mass, among sinks, closed nodes and the
/// level's candidates, of whose logits at most 2 nats that variance adds count here; r_i = min(u_i,
/// n - 1), u_i the variance of its logits (n - 1: what one key that holds all the mass makes of
/// it); s the RMS deviation of its values; the second part is the error of the mass, for keys whose
/// values agree. A node with a known key that weighs more than it is given that key's logit, and
/// r_i = n - 1; known keys are forgotten below 1/32 of the largest weight. Cost: kTreeRows visited
/// (D + kCoordinates) multiply-adds.
void OpenBlock(const kernels::NodesView& nodes, const kernels::QueryLanes& lanes, float threshold,
               const Scoring& scoring, Opening& opening);

}  // namespace smyrf
