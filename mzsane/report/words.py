"""The report's words and what they mean: methods, what a score has seen, and measures."""

METHOD_MEANINGS = {
    "zoo": "Held-out models, trained the ordinary way, of the target's own zoo; for a target without one, of the "
    "composition's zoos. The mark to reach.",
    "best_model": "The training model that is best on validation images: what a user would take. As it is, or "
    "fine-tuned as long as the others.",
    "transfer": "Held-out models of zoos of other images, of the same architecture and number of classes: what a "
    "network at hand gives, as it is or as a start.",
    "reconstruction": "Zoo models encoded and decoded by the backbone: what the autoencoder alone loses.",
    "samples": "Generated networks, good and bad: their mean, not their best.",
    "selected": "The best of the generated networks, chosen on labelled validation data.",
    "anchors": "The zoo models that the sampler starts from, encoded and decoded without noise: what copying gives.",
    "best_anchor": "The anchor that is best on validation images, as it is in the zoo.",
    "decoded_noise": "A decoded anchor plus random noise on the weights, as far from the training models as the sample "
    "is: what is left when the autoencoder's own displacement is granted.",
    "layer_noise": "An anchor, not decoded, plus noise in proportion to each layer's deviation, as far from it as the "
    "sample is: generating without a backbone.",
    "flat_noise": "An anchor plus noise in the directions that its outputs hardly depend on (the flat half of its "
    "Gauss-Newton spectrum), on unlabelled images or on noise images.",
    "distilled_init": "A newly initialised network trained towards the zoo's mean output, on unlabelled images, on "
    "images drawn from statistics or on noise images, for so many steps.",
    "interpolation": "Places between two aligned anchors, in their weights: generating without a backbone.",
    "average": "The weight-by-weight average of the aligned anchors: generating without a backbone.",
    "statistics": "Each weight drawn by itself, with the mean and deviation of its layer in the anchors.",
    "random_init": "Newly initialised networks. Fine-tuned as long, they tell whether a generated start helps.",
}
SEES_MEANINGS = {
    "none": "Nothing of the target.",
    "statistics": "Statistics of the target's images, such as moments and clusters, but no image.",
    "images": "Images of the target without labels, for example to recompute batch-norm statistics.",
    "labels": "Labelled data of the target, for example to select samples or to fine-tune.",
}
KINDS = {
    "zoo": "trained models",
    "samples": "generated",
    "selected": "generated",
    "reconstruction": "copies",
    "anchors": "copies",
    "best_anchor": "copies",
    "best_model": "copies",
    "transfer": "copies",
    "decoded_noise": "anchor and noise",
    "layer_noise": "anchor and noise",
    "flat_noise": "anchor and noise",
    "interpolation": "from weights alone",
    "average": "from weights alone",
    "statistics": "from weights alone",
    "distilled_init": "new initialisations",
    "random_init": "new initialisations",
}
WORDS = {
    "composition": "What the backbone was trained on: models of one or several zoos.",
    "backbone": "The autoencoder of weights from whose latents networks are generated.",
    "target": "What the networks are scored on: an architecture and an image dataset.",
    "in distribution": "The target's dataset is among those of the composition. Not known: nothing says which "
    "dataset one of the two is; the label of images, or the dataset of a zoo that is read, can say it.",
    "zero-shot": "Scored as generated, without fine-tuning.",
    "accuracy": "On the target's test images, the mean over networks; 0.9 is 90 %.",
    "points": "Percentage points of accuracy: from 0.90 to 0.91 is one.",
    "interval": "95 % confidence interval. It counts independent units (anchors, or seeds of the backbone), not single "
    "networks; below three units there is none.",
    "sees": "What sampling, choosing or fine-tuning used of the target: nothing, statistics, images or labels.",
    "generator sees": "What the making of the generator used of the target: images, if the backbone was trained on "
    "behaviour on the target's dataset.",
    "novelty": "Distance of a network to the nearest one that the backbone was trained on, hidden units in the best "
    "order, signs and scales divided out, over the mean such distance between the training networks themselves. "
    "0 is a copy, 1 is as new as they are to each other.",
    "sampling novelty": "The same distance from the decoded anchor: what sampling added to what the autoencoder lost.",
    "norm ratio": "The largest deviation by layer from the zoo's median norm, as a ratio. Outside norms: beyond the "
    "zoo's 1 to 99 % range in some layer.",
    "error overlap": "Wrong predictions shared with the most similar training model, over those of either.",
    "disagreement": "With that model, among images that at least one of the two gets right.",
    "spread": "Distance to the nearest other network of the same set, in zoo spacings.",
    "coverage": "Share of held-out models that have a sample among their nearest neighbours.",
    "copying z": "Data-copying statistic: negative if samples are nearer to training models than held-out models are.",
    "calibration": "Expected calibration error: how far the probability of the predicted class is from the accuracy.",
    "ensemble": "So many networks whose probabilities are averaged; 1 is a single network.",
    "chosen of": "The networks were selected on validation images, of so many.",
    "gradient steps": "Steps of training a network, before any fine-tuning; image passes: images seen in them.",
    "seconds": "Time to make one network, on the machine named above.",
    "total effect": "What changes when a composition is made larger or more diverse, with everything that follows.",
    "adjusted effect": "The same at equal novelty, which is itself a consequence of the composition: it is not the "
    "answer to what a zoo should be made of.",
    "win, tie, loss": "A win or a loss has a 95 % interval of the paired difference on one side of 0; else it is a "
    "tie. With fewer than three independent units there is no test.",
    "passes": "How often the backbone has seen each checkpoint in pre-training.",
    "gain in the last quarter": "Validation R² gained in the last quarter of training: near 0 where it has converged.",
    "reconstruction loss": "Points of accuracy that held-out models lose when the backbone encodes and decodes them.",
}
# Whether the target's dataset is among the composition's, in words; None where nothing tells.
PLACES = {True: "in distribution", False: "out of distribution", None: "not known whether in distribution"}
_STAGE = "zero-shot"


def name_epochs(epochs: int) -> str:
    """Return `zero-shot`, `1 epoch`, `3 epochs`."""
    return _STAGE if epochs == 0 else f"{epochs} epoch{'s' * (epochs > 1)}"


def name_sees(sees: str) -> str:
    """Return what was seen of the target, for a sentence: `sees nothing`, `sees images`."""
    return f"sees {'nothing' if sees == 'none' else sees}"


def name_sight(sees: str, generator_sees: str) -> str:
    """Return what was seen of the target in all: `sees nothing; its generator saw images`."""
    return name_sees(sees) + ("" if generator_sees == "none" else f"; its generator saw {generator_sees}")


def name_method(method: str, steps: int | None = None) -> str:
    """Return a method's name with its gradient steps, if it has any: `distilled_init, 300 steps`."""
    return f"{method}, {steps:,} steps" if steps and method != "zoo" else method
