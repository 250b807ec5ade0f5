"""Text encoders of transformers, on small random configurations made on the spot."""

from dataclasses import replace

import pytest
import torch

import backdrift as bd
from backdrift.interop import text as given
from backdrift.train.networks import UNetChoice
from backdrift.train.options import TrainOptions

NET = UNetChoice(width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_width=16)
WORDS = ("red", "blue", "heart", "cat", "a", "sun")


def test_what_is_no_encoder_is_one_sentence(tmp_path):
    with pytest.raises(bd.UserError, match="no folder of a text encoder"):
        given.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(bd.UserError, match="holds a bert"):
        given.load(tmp_path)


@pytest.fixture(params=["clip", "t5"])
def folder(request, tmp_path):
    """A folder as transformers writes it: random weights, and a tokenizer of eight words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    numbers = {"<pad>": 0, "</s>": 1, **{word: i for i, word in enumerate(WORDS, start=2)}}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    torch.manual_seed(0)
    if request.param == "clip":
        config = transformers.CLIPTextConfig(
            vocab_size=8,
            hidden_size=12,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=6,
            eos_token_id=1,
        )
        model = transformers.CLIPTextModel(config)
    else:
        config = transformers.T5Config(vocab_size=8, d_model=12, d_kv=6, d_ff=24, num_layers=2, num_heads=2)
        model = transformers.T5EncoderModel(config)
    model.save_pretrained(tmp_path / "encoder")
    fast.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder", model.eval(), numbers


def test_a_text_is_encoded_as_transformers_does(folder):
    path, model, numbers = folder
    encoder = given.load(path, 6)
    assert (encoder.width, encoder.length) == (12, 6)
    made = encoder.encode(["a red heart", "sun"])
    assert made.shape == (2, 4, 13)
    for row, text in zip(made, ("a red heart", "sun"), strict=True):
        ids = [numbers[word] for word in text.split()] + [1]
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([ids])).last_hidden_state[0]  # without what fills it up
        torch.testing.assert_close(row[: len(ids), :-1], alone)
        assert row[:, -1].tolist() == [1.0] * len(ids) + [0.0] * (4 - len(ids))
        assert not row[len(ids) :].any()
    with pytest.raises(bd.UserError, match="has 7 pieces, and this model reads at most 6"):
        encoder.encode(["a red heart a red heart"])
    with pytest.raises(bd.UserError, match="is empty"):
        encoder.encode(["sun", " "])


def test_a_run_with_a_frozen_encoder(folder, tmp_path):
    """The encoder's weights are not in the run, which names its folder; texts are asked for as ever."""
    path, _, _ = folder
    texts = ["red heart", "blue cat", "a sun", "blue heart"] * 10
    pixels = torch.arange(40 * 64, dtype=torch.int64).mul(37).remainder(256).to(torch.uint8).view(40, 1, 8, 8)
    pictures = bd.data.Pictures(pixels, None, (), texts, {"kind": "none", "fingerprint": ""}, texts, 0.2)
    options = TrainOptions(steps=2, batch=4, net=NET, precision="fp32").with_text(given.load(path))
    model = bd.train(pictures, options, run=tmp_path / "run", progress=False)
    again = bd.load(tmp_path / "run")
    asked = {"text": "a blue sun", "guidance": 2.0, "steps": 2}
    made = again.sample(2, **asked)
    assert torch.equal(made, model.sample(2, **asked)) and not torch.equal(made, again.sample(2, steps=2))
    torch.testing.assert_close(
        again.sample(2, text=["a blue sun", "a red cat red"], steps=2)[:1], again.sample(1, text="a blue sun", steps=2)
    )  # however long the others are
    assert not [name for name in model.denoiser.state_dict() if "reader" in name]
    shown = pictures.reading(options.text.encode)
    assert shown.cond(torch.tensor([1]))["text"].shape[1:] == (3, 13)
    gone = replace(again.text, path=str(tmp_path / "elsewhere"))
    with pytest.raises(bd.UserError, match="there no more"):
        gone.encode(["sun"])
