"""Training with texts: what is learned, saved, continued and asked for; what is refused."""

from dataclasses import replace

import pytest
import torch

import backdrift as bd
from backdrift.config import from_config, to_config
from backdrift.evaluate.composition import composition
from backdrift.noise import Noise
from backdrift.run import Run
from backdrift.train import stream
from backdrift.train.networks import DiTChoice, MPUNetChoice, UNetChoice
from backdrift.train.options import TrainOptions
from backdrift.train.texts import OwnText

NET = UNetChoice(width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_width=16)
FAST = TrainOptions(steps=4, batch=8, net=NET, precision="fp32", checkpoint_every=2, validate_every=0)


def small_text(pictures):
    return OwnText.of(pictures, width=32, depth=1)


@pytest.fixture(scope="module")
def pictures():
    """60 scenes of one colour channel at 12 x 12, for fast trainings, with a label: one, several or two things."""
    scenes = bd.data.scenes(60)
    labels = torch.tensor([2 if " a " in text else int(text[:2] != "a ") for text in scenes.texts])
    pixels = scenes.pixels[:, :1, ::2, ::2].contiguous()
    return replace(scenes, pixels=pixels, census=None, labels=labels, classes=("one", "several", "two"))


@pytest.fixture(scope="module")
def options(pictures):
    return FAST.with_text(small_text(pictures))


@pytest.fixture(scope="module")
def model(pictures, options, tmp_path_factory):
    return bd.train(pictures, options, run=tmp_path_factory.mktemp("runs") / "text", progress=False)


def test_a_run_folder_is_enough_to_ask_for_a_text(model):
    again = bd.load(model.folder)
    asked = {"text": "a red circle", "label": "two", "guidance": 3.0, "steps": 3, "seed": 4}
    made = again.sample(3, **asked)
    assert torch.equal(made, model.sample(3, **asked))
    assert torch.equal(bd.load(model.folder / "model.safetensors").sample(3, **asked), made)
    torch.testing.assert_close(again.sample(index=[2], **asked)[0], made[2])
    for changed in ({"text": "a small blue cross"}, {"label": "one"}, {"text": None}, {"label": None}):
        assert not torch.equal(again.sample(3, **{**asked, **changed}), made)
    two = again.sample(2, text=["a red circle", "two red circles"], steps=3)
    torch.testing.assert_close(two[1], again.sample(index=[1], text="two red circles", steps=3)[0])


def test_guidance_is_the_stated_combination(model):
    cond = {"text": model.texts("a red circle", 2), "label": torch.tensor([1, 2])}
    xt = Noise.of(0, 2).normal(torch.zeros(2, 1, 12, 12))
    with torch.no_grad():
        told, alone = (model.denoiser(xt, 0.7, c).mean for c in (cond, None))
        nothing = {"text": torch.zeros_like(cond["text"]), "label": torch.tensor([3, 3])}
        torch.testing.assert_close(model.denoiser(xt, 0.7, nothing).mean, alone)
        torch.testing.assert_close(model.guided(3.0, cond)(xt, 0.7, cond).mean, alone + 3 * (told - alone))


def test_a_stopped_training_continues_bit_for_bit(model, pictures, options, tmp_path):
    class Crash(Exception):
        pass

    def crash(record):
        if record["step"] == 3:
            raise Crash

    with pytest.raises(Crash):
        bd.train.__globals__["train_network"](
            pictures, replace(options, log_every=1), run=tmp_path / "run", on_record=crash
        )
    continued = bd.train(pictures, replace(options, log_every=1), run=tmp_path / "run", progress=False)
    for name, value in model.denoiser.state_dict().items():
        assert torch.equal(value, continued.denoiser.state_dict()[name]), name


def test_pictures_and_conditions_stay_together(pictures, options):
    """Through the split, the stream's order, and hiding."""
    part, held = (half.reading(options.text.encode) for half in pictures.split())
    for half in (part, held, part.subset([3, 1])):
        codes = options.text.encode(half.texts)
        assert torch.equal(half.cond()["text"], codes)
        assert torch.equal(half.cond(torch.tensor([1]))["text"], codes[1:2])
    places = torch.arange(20)
    chosen = stream.indices(places, len(part), options.seed)
    shown = stream.draw(part, replace(options, label_dropout=0.0), places, torch.device("cpu")).cond
    assert torch.equal(shown["text"], part.cond(chosen)["text"])
    hidden = stream.draw(part, replace(options, label_dropout=1.0), places, torch.device("cpu")).cond
    assert (hidden["text"] == 0).all() and (hidden["label"] == 3).all()
    assert not pictures.cond().keys() & {"text"}  # a set is only read where a model reads


def test_the_encoder_is_recorded_and_learned_from_the_training_part(pictures, options, model):
    assert from_config(to_config(options)) == options
    assert Run(model.folder).options() == options
    again = small_text(replace(pictures, texts=list(pictures.texts)))
    assert again == options.text
    held = pictures.split()[1]
    changed = [
        text + " zebra" if name in held.names else text
        for name, text in zip(pictures.names, pictures.texts, strict=True)
    ]
    assert small_text(replace(pictures, texts=changed)).pieces == options.text.pieces
    assert small_text(replace(pictures, texts=changed)).length > options.text.length


def learns(net, lr):
    """Half of the pictures are bright on the left, half on the right, and the texts say which."""
    pixels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    pixels[::2, :, :, :4], pixels[1::2, :, :, 4:] = 255, 255
    pixels[:, 0, 0, 0] = torch.arange(40)  # all different, so that some can be held out
    texts = ["left", "right"] * 20
    halves = bd.data.Pictures(pixels, None, (), texts, {"kind": "none", "fingerprint": ""}, texts, 0.2)
    asked = replace(FAST, steps=50, batch=16, lr=lr, net=net, checkpoint_every=0, validate_every=0)
    made = bd.train(halves, asked.with_text(small_text(halves)), progress=False)
    samples = made.sample(4, text=["left", "right"] * 2, steps=4, guidance=2)
    sides = samples[..., :4].mean((1, 2, 3)) - samples[..., 4:].mean((1, 2, 3))
    assert (sides[::2] > 0.5).all() and (sides[1::2] < -0.5).all(), sides


def test_a_network_learns_what_texts_mean():
    learns(DiTChoice(patch=4, width=32, depth=2, head_width=16), 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "lr"),
    [
        (replace(NET, multipliers=(1, 1)), 3e-3),
        (MPUNetChoice(width=16, multipliers=(1, 1), blocks=1, attention=(1,), head_width=16), 3e-2),
    ],
)
def test_every_network_learns_what_texts_mean(net, lr):
    learns(net, lr)


def test_texts_that_cannot_be_used_are_one_sentence(model, pictures, options, tmp_path):
    with pytest.raises(bd.UserError, match="is empty"):
        model.sample(2, text=" ")
    with pytest.raises(bd.UserError, match="reads at most 1"):
        model.sample(2, text="a red square left of a blue circle and far above a green triangle")
    with pytest.raises(bd.UserError, match="3 texts for 2 samples"):
        model.sample(2, text=["a red square"] * 3)
    with pytest.raises(bd.UserError, match="trained without text"):
        bd.Model(model.denoiser).sample(2, text="a red square")
    some = replace(pictures, texts=["", *pictures.texts[1:]])
    with pytest.raises(bd.UserError, match=r"1 of 60 pictures have no text \(scene 0\)"):
        OwnText.of(some)
    with pytest.raises(bd.UserError, match=r"have no text \(scene 0\)"):
        bd.train(some, options, progress=False)
    with pytest.raises(bd.UserError, match="have no texts"):
        OwnText.of(replace(pictures, texts=None))
    with pytest.raises(bd.UserError, match="reads at most"):
        long = replace(pictures, texts=["a very long text about nothing in particular", *pictures.texts[1:]])
        bd.train(long, options, progress=False)
    other = replace(pictures, texts=["two red crosses", *pictures.texts[1:]])
    with pytest.raises(bd.UserError, match=r"data\.texts"):
        bd.train(other, options, run=model.folder, progress=False)


def test_captions_are_counted_by_kind(pictures):
    class Draws:
        """Draws what the caption says, but for two things, where it draws only what stands first."""

        def sample(self, *, index, text, guidance, steps, solver, seed):
            from backdrift.data.scenes import Meaning, draw, show

            placed = show([Meaning.read(one) for one in text], seed, index)
            first = [p[:1] if " a " in one else p for p, one in zip(placed, text, strict=True)]
            return torch.stack([torch.from_numpy(draw(one)) for one in first]).float() / 127.5 - 1

    found = composition(Draws(), n=6)
    shares = {count.kind: count.share for count in found.counts}
    assert len(shares) == 12 and all(count.n == 6 for count in found.counts)
    for kind, share in shares.items():
        assert share == (0.0 if kind.startswith("two") or kind == "seen: two" else 1.0)
    assert (found.unseen_one.right, found.unseen_one.n, found.unseen_two.n) == (18, 18, 24)
    assert found.to_dict()["counts"][0] == {"kind": "one shape_colour", "right": 6, "n": 6}
    assert any("[0.824, 1.000]  n = 18" in line for line in found.lines())
