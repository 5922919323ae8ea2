"""The training data loader: windows of tokens, packed, read ahead, augmented."""
