"""Numbers that the sweep and its table share."""

# Deviations count in standard deviations of the output or gradient that they are of.
BOUND = 5e-4
