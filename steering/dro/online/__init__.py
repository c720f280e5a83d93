"""The same risk from mini-batches: running duals, a temperature that moves, a strength."""
