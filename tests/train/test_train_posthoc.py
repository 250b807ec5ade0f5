"""Averages chosen after training, against the same averages tracked during it."""

import json
import math
from dataclasses import replace

import pytest
import torch

from backdrift.errors import UserError
from backdrift.run import Run, load_network
from backdrift.train import checkpoint, ema, posthoc
from backdrift.train.loop import train
from backdrift.train.rate import Constant


def tracked(law, walk):
    """What `law` makes of the rows of `walk` (T, D), after every step, (T, D)."""
    average, rows = {"x": torch.zeros_like(walk[0])}, []
    for step, row in enumerate(walk, 1):
        ema.update(average, {"x": row}, law.keep(step, 1))
        rows.append(average["x"].clone())
    return torch.stack(rows)


def test_inner_products_are_the_integrals():
    t, g = torch.tensor([0.7, 1.0, 0.4], dtype=torch.float64), torch.tensor([3.0, 6.9, 16.0], dtype=torch.float64)
    u = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    profiles = torch.stack([torch.where(u < s, (k + 1) * u**k / s ** (k + 1), 0.0) for s, k in zip(t, g, strict=True)])
    torch.testing.assert_close(posthoc._products(t, g), profiles @ profiles.T / len(u), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("roughness", [1.0, 0.0])  # a random walk, and one that turns smoothly
def test_combination_is_the_tracked_average(roughness):
    generator = torch.Generator().manual_seed(0)
    last, kept = 800, ema.Snapshots()
    u = torch.linspace(0, 1, last, dtype=torch.float64)[:, None]
    steps = torch.randn(last, 50, generator=generator, dtype=torch.float64)
    walk = 1 + roughness * 0.05 * steps.cumsum(0) + torch.cos(5 * u + torch.arange(50))
    times = sorted(kept.steps(last))
    assert len(times) == 8 and times[-1] == last and times[1] == last // 2
    every = torch.stack([tracked(law, walk) for law in kept.laws], 1)
    snapshots = every[torch.tensor(times) - 1]  # (T, W, D)
    for width in (0.05, 0.06, 0.07, 0.085, 0.1):
        found = posthoc.recipe(times, kept.widths, width)
        made = torch.einsum("tw,twd->d", found.shares, snapshots)
        wanted = tracked(ema.Power(width), walk)[-1]
        error = float((made - wanted).norm() / wanted.norm())
        assert error < (1e-9 if width in kept.widths else 1e-3), (width, error)
        assert found.left_over < (1e-6 if width in kept.widths else 1e-2)
        assert math.isclose(float(found.shares.sum()), 1, abs_tol=1e-3)
    # what is left over tells where the snapshots no longer reach
    left = [posthoc.recipe(times, kept.widths, width).left_over for width in (0.1, 0.12, 0.15, 0.2, 0.28)]
    assert left == sorted(left) and left[-1] > 0.3


def test_training_keeps_what_any_average_is_made_of(tmp_path, pictures, options, tiny):
    law = {"average": ema.Power(0.07), "rate": Constant()}  # at a constant rate the weights move to the end
    options = replace(options, steps=60, lr=0.02, checkpoint_every=25, log_every=60, **law)
    whole = train(pictures, options, run=tmp_path / "whole", net=tiny())
    made, found = posthoc.average(whole.run, 0.07, net=tiny())

    def distance(a, b):
        a, b = (torch.cat([p.flatten() for p in net.parameters()]) for net in (a, b))
        return float((a - b).norm() / b.norm())

    assert distance(made, whole.network) < 1e-3 and 0 < found.left_over < 0.02
    assert distance(whole.network, posthoc.average(whole.run, 0.1, net=tiny())[0]) > 5e-3  # which would not do
    assert len(list(whole.run.averages.iterdir())) == 8
    # 32 bytes per weight, beside the names
    size = sum(p.numel() for p in tiny().parameters())
    headers = sum(8 + int.from_bytes(p.read_bytes()[:8], "little") for p in whole.run.averages.iterdir())
    assert sum(p.stat().st_size for p in whole.run.averages.iterdir()) - headers == 32 * size

    class Crash(Exception):
        pass

    def crash(progress):
        if progress.step == 46:
            raise Crash

    with pytest.raises(Crash):
        train(pictures, options, run=tmp_path / "cut", net=tiny(), on_progress=crash)
    train(pictures, options, run=tmp_path / "cut", net=tiny())
    for path in whole.run.averages.iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / "averages" / path.name).read_bytes()


def test_a_chosen_average_is_a_run(tmp_path, pictures, options, tiny):
    run = train(pictures, options, run=tmp_path / "run", net=tiny()).run
    posthoc.write_average(run, 0.09, tmp_path / "wide", ["a", "command"], tiny())
    other = Run(tmp_path / "wide")
    assert other.options() == replace(run.options(), average=ema.Power(0.09))
    assert other.config()["average_of"] == str(run.folder) and other.config()["command"] == ["a", "command"]
    x, t, cond = torch.ones(2, 1, 4, 4), torch.tensor([0.3, 0.9], dtype=torch.float64), {"label": torch.tensor([0, 3])}
    made, _ = posthoc.average(run, 0.09, tiny())
    assert torch.equal(load_network(other.folder, net=tiny())(x, t, cond).mean, made(x, t, cond).mean)
    with pytest.raises(UserError, match="holds a run already"):
        posthoc.write_average(run, 0.09, other, net=tiny())
    with pytest.raises(UserError, match="kept no snapshots"):
        posthoc.average(other, 0.09, tiny())
    with pytest.raises(UserError, match=r"0\.28 cannot be made .* nearer to 0\.05 or 0\.1"):
        posthoc.average(run, 0.28, tiny())
    newest = checkpoint.files(run.averages)[-1]
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    with pytest.raises(UserError, match=f"{newest.name} is damaged; remove it"):
        posthoc.average(run, 0.09, tiny())


def test_a_run_of_an_older_release_goes_on_without(tmp_path, pictures, options, tiny):
    whole = train(pictures, options, net=tiny())
    old = replace(options, snapshots=ema.Snapshots(0))

    def crash(progress):
        if progress.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pictures, old, run=tmp_path, net=tiny(), on_progress=crash)
    run = Run(tmp_path)
    config = run.config()
    del config["options"]["snapshots"]
    run.config_path.write_text(json.dumps(config))
    train(pictures, options, run=run, net=tiny())
    assert not run.averages.exists()
    ours, theirs = load_network(run.folder, net=tiny()).state_dict(), whole.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_numbers_too_large_for_float16_are_kept_as_they_are(tmp_path):
    path = posthoc.save(tmp_path, 3, {0.05: {"a": torch.tensor([1e9, 1.0]), "b": torch.tensor([0.1])}})
    header, tensors = posthoc._load(path)
    assert header["step"] == 3 and tensors["0.05/a"].tolist() == [1e9, 1.0] and tensors["0.05/b"].dtype == torch.float16


@pytest.mark.parametrize("bad", [{"count": -1}, {"widths": ()}, {"widths": (0.1, 0.1)}, {"widths": (0.3,)}])
def test_bad_snapshots_are_refused(bad):
    with pytest.raises(UserError, match=r"snapshots|width"):
        ema.Snapshots(**bad)
