"""Networks: made, recognised, started, conditioned, trained and run."""
