"""Image classification: datasets that are built in, known to torchvision, or in files."""
