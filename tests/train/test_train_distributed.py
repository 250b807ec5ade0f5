"""Two processes train what one does: steps, checkpoints, and what is said when they cannot."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from pair import Pair, run

from backdrift.errors import UserError
from backdrift.run import Run, load_network
from backdrift.train import checkpoint, distributed, loop
from backdrift.train.distributed import World
from backdrift.train.ema import Snapshots
from backdrift.train.networks import DiTChoice, MPUNetChoice, UNetChoice
from backdrift.train.randomness import own_randomness, seed_step

NETS = {
    "unet": UNetChoice(width=16, multipliers=(1,), blocks=1, attention=(0,), head_width=16),
    "dit": DiTChoice(width=64, depth=1),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()


@pytest.fixture
def options(options):
    return replace(options, steps=6, log_every=1, validate_every=3, checkpoint_every=2, snapshots=Snapshots(count=2))


def losses(folder):
    return torch.tensor([r["loss"] for r in Run(folder).metrics() if "loss" in r], dtype=torch.float64)


def validations(folder):
    return torch.tensor([r["validation_loss"] for r in Run(folder).metrics() if "validation_loss" in r])


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=6e-6)  # 1e-6 for each of 6 steps


def state(folder, step):
    """Every tensor of a checkpoint, whole."""
    (path,) = (path for path in checkpoint.all_in(Run(folder).checkpoints) if checkpoint.step_of(path) == step)
    saved = checkpoint.verified(path)
    tensors = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in saved.shapes.items()}
    saved.fill(tensors)
    return tensors


@pytest.mark.parametrize("parts, clip", [(1, 1.0), (3, 0.02)])
def test_two_processes_take_the_steps_of_one(tmp_path, pair, pictures, options, parts, clip):
    options = replace(options, checkpoint_every=1, clip=clip)
    one, _ = run(pictures, options, tmp_path / "one", net={})
    here, there = pair(run, pictures, replace(options, parts=parts), tmp_path / "two", net={})
    assert torch.equal(here[0], there[0])
    close(here[0], one)
    close(losses(tmp_path / "two"), losses(tmp_path / "one"))
    assert len(losses(tmp_path / "two")) == 6 and float(losses(tmp_path / "one").std()) > 1e-3
    close(validations(tmp_path / "two"), validations(tmp_path / "one"))
    for step in (5, 6):  # moments of the optimiser and the window of the metrics too
        one, two = state(tmp_path / "one", step), state(tmp_path / "two", step)
        assert one.keys() == two.keys()
        for name in one:
            close(two[name], one[name])


@pytest.mark.parametrize("net", [pytest.param("unet", marks=pytest.mark.slow), "dit"])
def test_sharded_networks_take_the_steps_of_one_process(tmp_path, pair, pictures, options, net):
    # nothing but the second validation looks at the average after the first: it must have been gathered anew
    options = replace(options, net=NETS[net], parts=2, checkpoint_every=0)
    one, _ = run(pictures, options, tmp_path / "one")
    here, there = pair(run, pictures, options, tmp_path / "two", shard=True)
    assert torch.equal(here[0], there[0])
    close(here[0], one)
    close(losses(tmp_path / "two"), losses(tmp_path / "one"))
    close(validations(tmp_path / "two"), validations(tmp_path / "one"))
    first, second = state(tmp_path / "one", 6), state(tmp_path / "two", 6)
    assert first.keys() == second.keys()
    for name in first:
        close(second[name], first[name])
    loaded = load_network(tmp_path / "two")
    close(torch.cat([p.double().flatten() for p in loaded.parameters()]), one)
    snapshots = [sorted((tmp_path / name / "averages").iterdir()) for name in ("one", "two")]
    assert [p.name for p in snapshots[0]] == [p.name for p in snapshots[1]] and snapshots[0]


# who begins and who goes on: one process, two, or two with a sharded network
@pytest.mark.parametrize(
    "begins, goes_on",
    [
        ("one", "two"),
        ("two", "one"),
        ("one", "sharded"),
        ("sharded", "one"),
        pytest.param("two", "sharded", marks=pytest.mark.slow),
        pytest.param("sharded", "two", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_resumes_at_another_number_of_processes(tmp_path, pair, pictures, options, begins, goes_on):
    def work(how, folder, **more):
        if how == "one":
            return run(pictures, options, folder, net={}, **more)
        return pair(run, pictures, options, folder, net={}, shard=how == "sharded", **more)[0]

    whole, _ = work("one", tmp_path / "whole")
    assert work(begins, tmp_path / "cut", crash_at=4) is None
    assert losses(tmp_path / "cut").shape == (4,)
    weights, notices = work(goes_on, tmp_path / "cut")
    close(weights, whole)
    close(losses(tmp_path / "cut"), losses(tmp_path / "whole"))  # the same pictures in the same order
    said = "began with processes" in " ".join(notices)
    assert said == ("one" in (begins, goes_on))
    config = Run(tmp_path / "cut").config()
    assert config["processes"] == (1 if begins == "one" else 2)


@pytest.mark.parametrize("shard", [False, True])
def test_the_same_processes_go_on_bit_for_bit_with_dropout(tmp_path, pair, pictures, options, shard):
    words = {"net": {"dropout": 0.3}, "shard": shard}
    whole = pair(run, pictures, options, tmp_path / "whole", **words)[0][0]
    assert pair(run, pictures, options, tmp_path / "cut", crash_at=3, **words) == [None, None]
    assert torch.equal(pair(run, pictures, options, tmp_path / "cut", **words)[0][0], whole)
    one, _ = run(pictures, options, tmp_path / "one", net={"dropout": 0.3})
    assert float((one - whole).abs().max()) > 1e-5  # the masks are others, as the page says


def test_a_damaged_piece_gives_way_to_the_checkpoint_before(tmp_path, pair, pictures, options):
    pair(run, pictures, options, tmp_path, net={}, shard=True)
    older, newer = checkpoint.all_in(Run(tmp_path).checkpoints)
    assert (older.name, newer.name) == ("step-0000004.sharded", "step-0000006.sharded")
    for damage in ("a bit", "a file", "the header"):
        copy = tmp_path / "copy"
        shutil.copytree(Run(tmp_path).checkpoints, copy)
        piece = sorted((copy / newer.name).glob("*.safetensors"))[1]
        if damage == "a bit":
            content = bytearray(piece.read_bytes())
            content[-3] ^= 1
            piece.write_bytes(content)
        elif damage == "a file":
            piece.unlink()
        else:
            (copy / newer.name / "checkpoint.json").write_text('{"step": 6')
        saved, notices = checkpoint.latest(copy)
        assert saved.step == 4 and "step-0000006.sharded is damaged" in notices[0]
        shutil.rmtree(copy / older.name)
        with pytest.raises(UserError, match="No checkpoint in"):
            checkpoint.latest(copy)
        shutil.rmtree(copy)


def test_a_sharded_checkpoint_that_does_not_fit_is_named(tmp_path, pair, pictures, options):
    pair(run, pictures, options, tmp_path, net={}, shard=True)
    header = max(Run(tmp_path).checkpoints.iterdir()) / "checkpoint.json"
    content = json.loads(header.read_text())
    content["shapes"]["net.enter.weight"] = [33, 17]
    header.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"does not fit .*: net.enter.weight is 33 x 17 in the file and 32 x 17"):
        run(pictures, options, tmp_path, net={})


def test_leftovers_of_a_crash_while_saving_go(tmp_path, pair, pictures, options):
    pair(run, pictures, options, tmp_path, net={}, shard=True, crash_at=4)
    half = Run(tmp_path).checkpoints / ".step-0000006.sharded"
    half.mkdir()
    (half / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    pair(run, pictures, options, tmp_path, net={}, shard=True)
    assert not half.exists() and len(checkpoint.all_in(Run(tmp_path).checkpoints)) == 2


def test_a_loss_that_is_not_finite_is_named_alike(tmp_path, pair, pictures, options):
    said = pair(run, pictures, replace(options, lr=1e30, clip=1e30), tmp_path, net={})
    assert said[0] == said[1] and said[0].startswith("NonFinite: Training stopped at step 2, before its update: the ")


@pytest.mark.parametrize(
    "changes, shard, sentence",
    [
        ({"batch": 9}, False, "A batch of 9 cannot be shared equally by 2 processes; choose a batch of 8"),
        ({"batch": 1}, False, "A batch of 1 cannot be shared equally by 2 processes; choose a batch of 2"),
        ({"parts": 9}, False, "The 8 pictures that each process has of a batch cannot pass in 9 parts"),
        ({"net": MPUNetChoice(16, (1,), 1, ())}, True, "cannot shard a network with single numbers among its weights"),
    ],
)
def test_trainings_that_processes_cannot_share(tmp_path, pair, pictures, options, changes, shard, sentence):
    for said in pair(run, pictures, replace(options, **changes), tmp_path / "run", shard=shard):
        assert said.startswith("UserError: ") and sentence in said
    assert not (tmp_path / "run").exists()


def test_sharding_alone_is_refused(tmp_path, pictures, options):
    with pytest.raises(UserError, match="this is the only one; start several, as in torchrun"):
        run(pictures, options, tmp_path / "run", net={}, shard=True)
    assert not (tmp_path / "run").exists()


def test_processes_that_disagree_are_told_so(tmp_path, pair, pictures, options):
    pair.pipes[0].send((run, (pictures, options, tmp_path), {"net": {}}))
    pair.pipes[1].send((run, (pictures, replace(options, lr=0.5), tmp_path), {"net": {}}))
    for said in (pair.answer(0), pair.answer(1)):
        assert "The processes of this job disagree: options.lr is " in said
    assert not any(tmp_path.iterdir())


def test_a_process_that_dies_leaves_a_sentence_and_the_last_step(tmp_path, pictures, options):
    fresh = Pair(tmp_path)
    try:
        said, dead = fresh(run, pictures, options, tmp_path / "run", net={"dies_at": 4})
        assert dead is None and fresh.processes[1].join(10) is None and fresh.processes[1].exitcode == -9
        assert said == (
            "ProcessLost: Another process of this job ended or stopped answering after step 3 of 6: step 3 is saved in "
            f"{tmp_path / 'run'}, where the same command continues it."
        )
    finally:
        fresh.close()
    weights, _ = run(pictures, options, tmp_path / "run", net={})
    close(weights, run(pictures, options, tmp_path / "whole", net={})[0])
    close(losses(tmp_path / "run"), losses(tmp_path / "whole"))


def test_dropout_is_drawn_anew_in_every_step_and_process():
    def drawn(*key):
        with own_randomness(torch.device("cpu"), 0):
            seed_step(*key)
            return float(torch.rand(()))

    keys = [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 0), (2**63 - 1, 10**9, 4095)]
    assert len({drawn(*key) for key in keys}) == len(keys) and drawn(0, 1, 1) == drawn(0, 1, 1)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 3, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="more processes than this machine has GPUs; use --nproc-per-node 2"):
        distributed.join(torch.device("cuda")).__enter__()


def test_alone_everything_is_free():
    world = World()
    places = torch.arange(5)
    assert world.first and torch.equal(world.part(places), places) and world.gather([places])[0] is places
    assert world.any(True) and not world.any(False) and world.told("x") == "x"
    assert torch.equal(torch.cat([World(rank, 3).part(places) for rank in range(3)]), places)
    assert distributed.whole(places) is places and distributed.local(places) is places
    loop.check(loop.TrainOptions(batch=7), world, False)
