"""The MZ-SANE sequence autoencoder, its loss and its pre-training."""
