"""What latents tell: features of checkpoints, linear probes, trajectories."""
