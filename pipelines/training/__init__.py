"""What a training worker does: the loop, its parallelism, its checkpoints, its faults."""
