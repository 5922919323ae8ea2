"""How new a model is: distance up to symmetries, norms, behaviour, memorisation."""
