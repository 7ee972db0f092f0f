"""What a training worker runs: the loop, parallelism, checkpoints and handling of failures."""
