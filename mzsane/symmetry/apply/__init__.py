"""Elements of the groups, applied to weights: axis_maps → permute."""
