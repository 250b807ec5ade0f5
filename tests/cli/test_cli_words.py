"""Mistakes in the command itself: each is one sentence that names what was wrong, and a non-zero exit."""

import pytest


def test_help_and_version(cli):
    status, out, _ = cli()
    assert status == 0 and all(f"  {verb} " in out for verb in ("demo", "train", "sample", "evaluate", "info"))
    assert cli("--version").out.startswith("backdrift 0.")


@pytest.mark.parametrize("verb", ["demo", "train", "sample", "evaluate", "info"])
def test_every_verb_has_help(cli, verb):
    status, out, err = cli(verb, "--help")
    assert status == 0 and out.startswith(f"usage: backdrift {verb}") and err == ""


@pytest.mark.parametrize(
    "command, sentence",
    [
        ("trian", "There is no verb 'trian' (did you mean train?)"),
        ("train --stpes 3", "no option --stpes (did you mean --steps?)"),
        ("train --unet.widht 3", "no option --unet.widht (did you mean --unet.width?)"),
        ("train --size 3", "no option --size (did you mean --pictures.size?)"),
        ("train --width=3", "no option --width=3 (did you mean --unet.width?)"),
        ("sample RUN --step 3", "no option --step (did you mean --steps?)"),
        ("info RUN --all", "no option --all;"),
        ("train pictures", "cannot use 'pictures'"),
        ("sample RUN other", "cannot use 'other'"),
        ("train --steps", "--steps needs a value"),
        ("train --pictures.background 1 2", "--pictures.background needs 3 values"),
        ("sample RUN --label", "--label needs a value"),
        ("sample RUN --index", "--index needs a value"),
        ("sample", "PATH is missing"),
        ("evaluate", "PATH is missing"),
        ("info", "PATH is missing"),
        ("train --steps many", "--steps takes a whole number, not 'many'"),
        ("sample RUN --n x", "--n takes a whole number, not 'x'"),
        ("sample RUN --guidance x", "--guidance takes a number, not 'x'"),
        ("sample RUN --index a", "--index takes whole numbers, not 'a'"),
        ("train --precision fp8", "--precision cannot be 'fp8'; choose "),
        ("train --flip maybe", "--flip cannot be 'maybe'"),
        ("train --target vv", "There is no target 'vv' (did you mean v?)"),
        ("train --schedule vpp", "There is no schedule 'vpp' (did you mean vp?)"),
        ("train --schedule tabulated", "There is no schedule 'tabulated'"),
        ("train --steps -3", "steps must be at least 1, not -3"),
        ("train --batch 0", "batch must be at least 1, not 0"),
        ("train --lr inf", "lr must be positive and finite"),
        ("train --seed 99999999999999999999", "seed must be a whole number"),
        ("train --label-dropout 2", "label_dropout"),
        ("train --checkpoint-every -1", "checkpoint_every must not be negative"),
        ("train --pictures.fit crop", "take no --pictures.fit"),
        ("train --unet.width 20", "width must be a multiple of 16"),
        ("train --unet.attention 5", "level 5, but levels run from 0"),
        ("train --unet.dropout 3", "dropout is a share"),
        ("train --schedule flow --target eps", "EPS cannot recover"),
        ("train --device abacus", "device 'abacus' cannot be used here"),
        ("train --net mine.py", "is named as my_file.py:Net"),
        ("train --net mine.py:Net", "mine.py cannot be read"),
        ("train --net mine.py:Net --unet.width 16", "cannot go with --net"),
        ("train --from nowhere", "There is no run folder nowhere"),
        ("sample nowhere", "There is no run folder nowhere"),
        ("evaluate nowhere", "nowhere is not a run folder"),
        ("info nowhere", "nowhere is not a run folder"),
        ("sample .", "is not a run folder"),
        ("sample RUN --label 12", "There is no label '12'; the labels are 0 to 9"),
        ("sample RUN --label cat", "There is no label 'cat'"),
        ("sample RUN --guidance 2", "needs a condition to follow"),
        ("sample RUN --label 3 --guidance -1", "A guidance weight is 0"),
        ("sample RUN --n 0", "at least one sample, not 0"),
        ("sample RUN --steps -1", "at least 1 step, not -1"),
        ("sample RUN --steps 0", "at least 1 step, not 0"),
        ("sample RUN --batch 0", "at least one sample, not 0"),
        ("sample RUN --index 3 -2", "no sample -2"),
        ("sample RUN --solver dimm", "There is no solver 'dimm' (did you mean ddim?)"),
        ("sample RUN --solver dpmpp9", "order"),
        ("sample RUN --solver heun2", "There is no solver 'heun2' (did you mean heun?)"),
        ("sample RUN --grid karas", "There is no grid 'karas' (did you mean karras?)"),
        ("sample RUN --device abacus", "device 'abacus' cannot be used here"),
        ("sample RUN --plan nowhere.json", "nowhere.json is not a plan"),
        ("sample RUN --plan RUN/config.json", "config.json is not a"),
        ("sample RUN --plan RUN/model.safetensors", "model.safetensors is not a plan"),
        ("sample RUN --plan nowhere.json --solver ddim", "either a plan or a solver"),
        ("sample RUN --out grid.jpg", "grid.jpg is neither a .png"),
        ("sample RUN --out RUN/config.json", "config.json is neither a .png"),
        ("sample RUN --out RUN", "is not empty and holds no samples"),
        ("evaluate RUN --n 3", "at least 20 samples"),
        ("evaluate RUN --n 40 --guidance -1", "A guidance weight is 0 or more"),
        ("evaluate RUN --features pcaa", "There are no features 'pcaa' (did you mean pca?)"),
        ("evaluate RUN --features net.pt", "net.pt"),
        ("evaluate nowhere --against digits", "There is no "),
    ],
)
def test_mistakes(refused, digits_run, tmp_path, monkeypatch, command, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(*(word.replace("RUN", str(digits_run)) for word in command.split()))
    assert list(tmp_path.iterdir()) == []  # refused before anything was written
