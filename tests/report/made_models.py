"""Single models for which the right comparison is known."""


def make_models(
    method,
    accuracies,
    composition="a",
    target="t",
    seed=0,
    clusters=None,
    sees="none",
    generator_sees="none",
    steps=0,
    epochs=0,
    inside=True,
    novelty=0.5,
):
    """Single models with these accuracies."""
    return [
        {
            "arm": f"{composition}-s{seed}",
            "composition": composition,
            "seed": seed,
            "target": target,
            "in_distribution": inside,
            "method": method,
            "sees": sees,
            "generator_sees": generator_sees,
            "model": number,
            "ensemble": 1,
            "cluster": clusters[number] if clusters else None,
            "finetune_epochs": epochs,
            "gradient_steps": steps,
            "accuracy": accuracy,
            "novelty": novelty,
        }
        for number, accuracy in enumerate(accuracies)
    ]
