"""What others write: checkpoints, their names, their metrics."""
