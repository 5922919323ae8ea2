"""A network's weights and buffers, as a flat vector and as tokens."""
