"""What networks are trained for: datasets, their splits and their identity."""
