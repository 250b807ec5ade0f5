"""Folders to publish and to fetch, in the form of `save_pretrained`: config.json, model.safetensors and a README.md.

A run folder is already this and more. What is published is what sampling needs: the config, the averaged weights, the
tuned plans and a model card; of the paths on the machine that trained it only the last names are kept.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from backdrift.errors import UserError
from backdrift.files import atomic_path, write_json, write_text
from backdrift.interop.extras import first_line, need
from backdrift.run import Run, read_model
from backdrift.train.checkpoint import write

_FETCHED = ["*.json", "*.safetensors"]
_NOT_FETCHED = ["*.fp16.*", "*.non_ema.*", "text_encoder*/*", "safety_checker/*", "tokenizer*/*"]
_OURS = ("config.json", "model.safetensors", "plans", "README.md", ".cache", ".git", ".gitattributes")
_PATHS = ("path", "start_from", "base")  # entries of a config that name files


def local(name: str | os.PathLike) -> Path:
    """A folder, or the local copy of a hub id, owner/name. Raises `UserError` where there is neither."""
    path = Path(name)
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)):
        raise UserError(f"There is no folder {name}, and it is no hub id (owner/name) either.")
    hub = need("huggingface_hub", "hub")
    try:
        return Path(hub.snapshot_download(str(name), allow_patterns=_FETCHED, ignore_patterns=_NOT_FETCHED))
    except Exception as error:
        raise UserError(f"There is no folder {name}, and the hub does not give it: {first_line(error)}.") from error


def save(run: Run, folder: Path) -> None:
    """Write what is to be published of a run. Raises `UserError` for a folder that holds something else."""
    tensors, config = read_model(run.model_path)
    step, config = config["step"], without_paths(run.config())
    folder = Path(folder)
    if folder.resolve() == run.folder.resolve():
        raise UserError(f"{folder} is the run itself; give another folder, which gets what is to be published.")
    strangers = sorted(p.name for p in folder.glob("*") if p.name not in _OURS)
    if strangers:
        raise UserError(f"{folder} holds something else (it has {strangers[0]}); give a new folder.")
    write_json(folder / "config.json", config)
    write(folder / "model.safetensors", tensors, {"backdrift": json.dumps({**config, "step": step})})
    for plan in sorted(run.plans.glob("*.json")):
        with atomic_path(folder / "plans" / plan.name) as temporary:
            shutil.copyfile(plan, temporary)
    write_text(folder / "README.md", card(config, step))


def without_paths(value: Any) -> Any:
    """A config with the last names of the paths in it."""
    if not isinstance(value, dict):
        return value
    found = {key: without_paths(item) for key, item in value.items()}
    for key in _PATHS:
        if isinstance(found.get(key), str):
            found[key] = Path(found[key]).name
    if "command" in found:
        found["command"] = [Path(word).name if os.sep in word else word for word in found["command"]]
    return found


def card(config: dict, step: int) -> str:
    """The model card of a run's config."""
    data, options = config["data"], config["options"]
    rows = {
        "pictures": " x ".join(map(str, data["shape"])) + f", {len(data['classes'])} classes",
        "data": data["source"].get("path") or data["source"]["kind"],
        "network": options["net"]["kind"].removeprefix("net."),
        "schedule": options["schedule"]["kind"].removeprefix("schedule."),
        "target": options["target"]["kind"].removeprefix("target."),
        "training": f"{step} steps of {options['batch']} pictures",
        "written by": f"backdrift {config['backdrift']}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    words = "model = bd.Model.from_pretrained(NAME)      # this folder, or owner/name on the hub"
    call = 'bd.save_grid(model.sample(16, steps=10, seed=0), "grid.png")'
    return (
        "---\nlibrary_name: backdrift\npipeline_tag: unconditional-image-generation\ntags: [diffusion]\n---\n\n"
        f"# A diffusion model of {rows['data']}\n\n```python\nimport backdrift as bd\n\n{words}\n{call}\n```\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder as the hub's `name`; returns its address. Raises `UserError` where the hub refuses."""
    hub = need("huggingface_hub", "hub")
    try:
        api = hub.HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Model by backdrift")
    except Exception as error:
        raise UserError(f"The hub does not take {name}: {first_line(error)}.") from error
    return str(address)
