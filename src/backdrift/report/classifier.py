"""The page of a trained classifier of noisy states: how often it is right at each noise level, and how it learned."""

from __future__ import annotations

from pathlib import Path

from backdrift.data import Pictures
from backdrift.evaluate.noisy import accuracy_by_noise
from backdrift.files import write_json, write_text
from backdrift.guide.classifier import NoisyClassifier
from backdrift.report import page
from backdrift.report.chart import Axis, Curve, chart
from backdrift.report.facts import command, facts
from backdrift.report.run import curves
from backdrift.run import Run


def write_classifier_report(run: Run, classifier: NoisyClassifier, pictures: Pictures) -> Path:
    """Measure the accuracy by noise level, write it as `accuracy.json` and `report.html`; returns the page's path."""
    found = accuracy_by_noise(classifier, pictures)
    write_json(run.folder / "accuracy.json", {"levels": [level.to_dict() for level in found]})
    n, angles = found[0].classifier.n, [level.angle for level in found]
    rows = [
        (f"{level.angle:.1f}°", f"{level.classifier.value:.3f}", "{:.3f} to {:.3f}".format(*level.classifier.interval))
        + (f"{level.bayes.value:.3f}", str(n))
        for level in found
    ]
    lines = [
        Curve("classifier", angles, [level.classifier.value for level in found]),
        Curve("Bayes' rule", angles, [level.bayes.value for level in found], dashed=True),
    ]
    note = (
        "Right answers on held-out pictures with noise added. Noise angle: atan2(noise, signal), 0° is a clean picture "
        "and 90° pure noise. Bayes' rule: what the training pictures themselves say, as if there were no others."
    )
    loss = "the cross-entropy of the label in nats"
    parts = [
        page.facts(facts(run)),
        page.heading("Accuracy by noise"),
        page.table(("noise angle", "accuracy", "95 % interval", "Bayes' rule", "n"), rows),
        chart("Accuracy on held-out pictures", lines, Axis("noise angle (degrees)"), Axis("right answers")),
        page.text(note, "note"),
        *curves(run.metrics(), loss),
        page.heading("The command that repeats this run"),
        page.code(command(run)),
    ]
    path = run.folder / "report.html"
    write_text(path, page.Page(f"backdrift: {run.folder.name}, a classifier", parts).html())
    return path
