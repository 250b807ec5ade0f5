"""The options of how guidance acts, for every verb that samples, and the steered model that they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backdrift.errors import UserError


@dataclass(frozen=True)
class Steering:
    """How guidance acts; plainly, with none of these."""

    interval: tuple[float, float] | None = None
    """Guide only where noise over signal lies between these two, such as 0.2 5."""
    against: str | None = None
    """Guide away from this label, in place of away from no label."""
    rescale: float | None = None
    """Draw the contrast back to that without guidance, by this share (0.7)."""
    project: bool = False
    """Leave out what guidance only makes brighter or darker."""
    anneal: tuple[float, float] | None = None
    """Blur the label where noise over signal is above the first, all of it above the second: more variety (1 10)."""
    weak: Path | None = None
    """Guide away from this weaker run, less trained or smaller, in place of away from no label."""
    classifier: Path | None = None
    """Guide by the classifier of this run (backdrift train --task classifier)."""

    def typed(self) -> list[str]:
        """The options that were given."""
        return [f"--{name}" for name, value in vars(self).items() if value not in (None, False)]

    def runs(self) -> dict[str, Path | None]:
        """The runs that it names, None for those that it does not."""
        return {"weak": self.weak, "classifier": self.classifier}

    def shapes(self) -> dict[str, object]:
        """Everything else, None for what is not asked for."""
        return {name: value or None for name, value in vars(self).items() if name not in self.runs()}

    def check(self, guidance: float) -> None:
        """Raises `UserError` for choices that exclude each other, or do nothing."""
        if self.classifier is not None:
            for other in self.typed():
                if other != "--classifier":
                    raise UserError(f"{other} shapes the guidance of a model by itself; leave out it or --classifier.")
        elif self.typed() and guidance == 1 and self.anneal is None:
            raise UserError(f"{self.typed()[0]} shapes guidance, and there is none; give a --guidance other than 1.")
        if self.weak is not None and self.against is not None:
            raise UserError("--weak and --against both say what to guide away from; give one of them.")
        if self.rescale is not None and self.project:
            raise UserError("--rescale and --project are two ways of mixing; give one of them.")

    def around(self, model, guidance: float, names: tuple[str, ...]):
        """`model` steered with this weight towards the conditions `names`. Raises `UserError` for nonsense."""
        from backdrift.guide import Annealed, AutoGuidance, Classifier, ClassifierFree, Interval, Projected, Rescaled
        from backdrift.model import load, load_classifier

        if not names:
            raise UserError(f"{[*self.typed(), 'Guidance'][0]} needs a condition to follow, such as --label 3.")
        if self.classifier is not None:
            classifier = load_classifier(self.classifier)
            return model.around(Classifier(model.denoiser, classifier, guidance, names), classifier.classes)
        weight = guidance if self.interval is None else Interval(guidance, *self.interval)
        mixing = Projected() if self.project else None if self.rescale is None else Rescaled(self.rescale)
        denoiser = model.denoiser if self.anneal is None else Annealed(model.denoiser, *self.anneal, names=names)
        if self.weak is not None:
            return model.around(AutoGuidance(denoiser, load(self.weak).denoiser, weight, mixing))
        against = None if self.against is None else {"label": model.labels(self.against, 1)}
        if guidance != 1:
            if model.unguided:
                raise UserError(model.unguided)
            denoiser = ClassifierFree(denoiser, weight, names, against, mixing)
        return model.around(denoiser)
