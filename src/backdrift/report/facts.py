"""What a run is, in a few lines: for `backdrift info` and the head of the report."""

from __future__ import annotations

import json
import shlex

from backdrift.run import Run, read_model


def evaluation(run: Run) -> dict | None:
    """The run's evaluation.json, or None."""
    path = run.folder / "evaluation.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def last(records: list[dict], name: str):
    """The newest value called `name`, or None."""
    return next((record[name] for record in reversed(records) if record.get(name) is not None), None)


def figures(run: Run) -> list[tuple[str, str]]:
    """(figure, value and floor) pairs of the run's evaluation, if there is one."""
    found = evaluation(run)
    rows = found["rows"] if found else []
    return [(row["name"], f"{_number(row['value'])} (floor {_number(row['floor'])})") for row in rows]


def command(run: Run) -> str:
    """The command that repeats the run."""
    words = run.config()["command"]
    return shlex.join(words) if words else "bd.train(bd.data.load(source), options), with both from config.json"


def facts(run: Run) -> list[tuple[str, str]]:
    """(what, value) pairs of the training. Raises `UserError` if the folder holds no run."""
    config = run.config()
    data, options = config["data"], config["options"]
    channels, height, width = data["shape"]
    classes = data["classes"]
    named = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    records = run.metrics()
    step = last(records, "step")
    if step is None:
        step = read_model(run.model_path)[1]["step"] if run.model_path.exists() else 0
    source = data["source"]
    rows = [
        ("run", str(run.folder)),
        ("data", str(source.get("path", source.get("kind")))),
        ("pictures", f"{data['training']} for training, {data['validation']} held out, {width}x{height}x{channels}"),
        ("labels", f"{len(classes)}: {named}" if classes else "none"),
        ("network", _words(options["net"])),
        ("process", f"{_words(options['schedule'])}, predicting {_words(options['target'])}"),
        ("training", f"{step} of {options['steps']} steps of {options['batch']} pictures, {config['precision']}"),
    ]
    if "average_of" in config:
        rows.append(("average", f"{_words(options['average'])}, of {config['average_of']}"))
    for name, words in (("loss", "training loss"), ("validation_loss", "held-out loss")):
        value = last(records, name)
        if value is not None:
            rows.append((words, f"{value:.4f}"))
    if run.model_path.exists():
        rows.append(("weights", f"{run.model_path.stat().st_size / 1e6:.1f} MB"))
    return rows


def _words(choice: dict) -> str:
    name = choice["kind"].split(".")[-1]
    nested = {key: _words(value) for key, value in choice.items() if isinstance(value, dict) and "kind" in value}
    values = ", ".join(f"{key} {value}" for key, value in {**choice, **nested}.items() if key != "kind")
    return f"{name} ({values})" if values else name


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
