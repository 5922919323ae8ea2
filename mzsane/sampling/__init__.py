"""Drawing new weights from a backbone."""
