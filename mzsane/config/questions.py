"""What an ablation asks, set down before it runs: the estimand, the contrast, the smallest effect worth having."""

from collections.abc import Collection, Mapping
from typing import Literal

from pydantic import Field, model_validator

from mzsane.config.base import Config, Name

Factor = Literal["models", "datasets", "architectures"]


class QuestionConfig(Config):
    """One question: what a factor of the compositions does, or how two compositions differ."""

    text: str = Field(min_length=1, max_length=200, description="the question in words; it heads the report")
    factor: Factor | None = Field(
        None,
        description="what is varied over the compositions: the change asked for is a doubling of the models, or "
        "one more dataset or architecture",
    )
    contrast: tuple[Name, Name] | None = Field(None, description="two compositions: the first less the second")
    method: Literal["samples", "selected"] = Field("samples", description="whose accuracy is asked about")
    epochs: int = Field(0, ge=0, description="epochs of fine-tuning before the accuracy is measured; 0 is zero-shot")
    in_distribution: bool | None = Field(
        None,
        description="only targets whose dataset is (true) or is not (false) among the composition's; both, apart "
        "from each other, if not set",
    )
    targets: tuple[Name, ...] = Field((), description="only these targets; all of them if empty")
    smallest: float = Field(1.0, ge=0, description="the smallest effect worth having, in percentage points")

    @model_validator(mode="after")
    def _check_estimand(self) -> "QuestionConfig":
        if (self.factor is None) == (self.contrast is None):
            raise ValueError(f"question {self.text!r} needs either a factor or a contrast")
        if self.contrast is not None and self.contrast[0] == self.contrast[1]:
            raise ValueError(f"question {self.text!r} compares composition {self.contrast[0]!r} with itself")
        return self

    def check(
        self,
        compositions: Collection[str],
        targets: Collection[str],
        epochs: Collection[int],
        counts: Mapping[str, Collection[int | None]],
    ) -> None:
        """Check that an ablation can answer it.

        Args:
            compositions: The ablation's compositions.
            targets: Its targets.
            epochs: Epochs of fine-tuning after which models are scored.
            counts: The different values that each factor has over the compositions, None where one is not known.

        Raises:
            ValueError: It names what is not there, or a factor that does not vary.
        """
        named = (("composition", self.contrast or (), compositions), ("target", self.targets, targets))
        for what, names, known in named:
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"question {self.text!r} names {what} {name!r}, which is not among the {what}s: "
                        f"{', '.join(known)}"
                    )
        if self.epochs not in epochs:
            raise ValueError(
                f"question {self.text!r} asks for {self.epochs} epochs of fine-tuning, but models are scored after "
                f"{', '.join(map(str, epochs))}"
            )
        counted = [] if self.factor is None else [count for count in counts[self.factor] if count is not None]
        if self.factor is not None and not counted:
            raise ValueError(
                f"question {self.text!r} asks what the number of {self.factor} does, which is not known of any "
                "composition: say what the zoos are, by network, and by images or dataset, or images.label"
            )
        if self.factor is not None and len(counted) == 1:
            count = counted[0]
            raise ValueError(
                f"question {self.text!r} asks what the number of {self.factor} does, which is {count} in all "
                "compositions"
            )
