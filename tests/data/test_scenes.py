"""Scenes show what their captions say, and the checker notices when they do not."""

from dataclasses import replace

import pytest
import torch

import backdrift as bd
from backdrift.data.scenes import (
    HELD_OUT,
    Meaning,
    Placed,
    Thing,
    agrees,
    draw,
    held_out,
    many,
    right,
    scene,
    see,
    show,
)
from backdrift.data.scenes.words import COLOURS, OPPOSITE, SHAPES, everything, trained


def shown(placed):
    return torch.from_numpy(draw(placed))[None].float() / 127.5 - 1


def test_the_checker_reads_back_what_was_drawn():
    """Every attribute of every thing, and the caption; also of combinations that training never shows."""
    unseen = [meaning for meanings in held_out().values() for meaning in meanings[:: len(meanings) // 15 or 1]]
    sets = [one.placed for one in many(3, range(300))] + show(unseen, 3, range(len(unseen)))
    meanings = [one.meaning for one in many(3, range(300))] + unseen
    for placed, meaning, read in zip(sets, meanings, see(torch.cat([*map(shown, sets)])), strict=True):
        assert sorted(map(repr, (p.thing for p in placed))) == sorted(map(repr, (p.thing for p in read)))
        assert agrees(meaning, read)


def test_a_wrong_attribute_is_noticed():
    red = Placed("square", "red", "small", 2, 5)
    blue = Placed("circle", "blue", "large", 12, 6)
    caption = "a small red square left of a large blue circle"
    assert right([caption, "a red square left of a blue circle"], shown((red, blue)).repeat(2, 1, 1, 1)) == [True] * 2
    for wrong in (
        (replace(red, colour="purple"), blue),
        (red, replace(blue, shape="square")),
        (replace(red, size="large", x=0), blue),
        (replace(red, x=12, y=0, size="small"), replace(blue, x=0, y=10)),  # above, not left
        (replace(red, x=18), replace(blue, x=2)),  # right of
        (replace(red, colour="blue"), replace(blue, colour="red")),  # attributes exchanged
        (red,),
        (red, blue, Placed("cross", "green", "small", 2, 17)),
    ):
        assert right([caption], shown(wrong)) == [False]
    three = [Placed("triangle", "green", "small", x, 2) for x in (0, 8, 16)]
    assert right(["three green triangles"], shown(three)) == [True]
    assert right(["two green triangles"], shown(three)) == [False]
    assert right(["a green triangle"], shown(three[:1])) == [True]


def test_what_resembles_no_shape_is_unknown():
    picture = shown((Placed("square", "red", "large", 2, 5),))
    bar = picture.clone()
    bar[:, :, 8:] = -1  # 10 wide, 3 high
    hollow = picture.clone()
    hollow[:, :, 6:14, 3:11] = -1
    white = picture.clone()
    white[:, 1:] = white[:, :1]
    between = torch.full_like(picture, -1)
    between[:, 0, 4:12, 4:12] = 1  # a side of 8 is neither small nor large
    assert see(torch.cat([bar, hollow, white, between])) == [None] * 4
    speck = picture.clone()
    speck[:, 1, 20, 20:22] = 1
    assert see(speck) == see(picture)
    noisy = picture + 0.1 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    assert see(noisy) == see(picture)


def test_a_scene_is_always_the_same():
    together = many(5, range(40))
    assert many(5, [31, 7]) == [together[31], together[7]] and scene(5, 31) == together[31]
    assert scene(6, 31) != scene(5, 31)
    pictures = bd.data.scenes(40, seed=5)
    assert pictures.texts == [one.text for one in together]
    assert torch.equal(pictures.pixels[31], together[31].pixels)
    again = bd.data.load(pictures.source)
    assert again.texts == pictures.texts and torch.equal(again.pixels, pictures.pixels)


def test_captions_are_read_as_they_are_written():
    one, several, two = everything()
    for meaning in (*one, *two[::7]):
        for unsaid in (meaning, meaning.unsized(True, False), meaning.unsized(False, True)):
            assert Meaning.read(unsaid.text) == unsaid
    assert all(Meaning.read(meaning.text) == meaning.unsized(True, True) for meaning in several)
    said = Meaning.read("A small  red square left of a blue circle")
    assert said == Meaning(Thing("square", "red", "small"), 1, "left of", Thing("circle", "blue"))
    assert Meaning.read("three green triangles") == Meaning(Thing("triangle", "green"), 3).unsized(True, True)
    with pytest.raises(bd.UserError, match="no caption"):
        Meaning.read("a red elephant")


def test_training_never_shows_a_held_out_combination():
    """Counted from the scenes' own attributes, without the code that leaves them out; each part alone is common."""
    scenes = many(11, range(3000))
    parts = {name: set() for name in ("shape", "colour", "size", "relation", "count")}
    for one in scenes:
        for p in one.placed:
            assert (p.shape, p.colour) not in HELD_OUT.shape_colour
            assert (p.size, p.shape) not in HELD_OUT.size_shape and (p.size, p.colour) not in HELD_OUT.size_colour
            parts["shape"].add(p.shape), parts["colour"].add(p.colour), parts["size"].add((p.size, p.shape))
        meaning = one.meaning
        assert (len(one.placed), one.placed[0].shape) not in HELD_OUT.count_shape or meaning.other
        if meaning.other:
            a, b = one.placed
            (ax, ay), (bx, by) = a.centre, b.centre
            sides = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}
            assert sides[meaning.relation] == max(sides.values()) > 0
            assert (a.shape, meaning.relation, b.shape) not in HELD_OUT.relation
            assert (b.shape, OPPOSITE[meaning.relation], a.shape) not in HELD_OUT.relation
            parts["relation"].add(meaning.relation)
        parts["count"].add(meaning.count)
    assert parts["shape"] == set(SHAPES) and parts["colour"] == set(COLOURS)
    assert parts["relation"] == set(OPPOSITE) and parts["count"] == {1, 2, 3, 4} and len(parts["size"]) == 7


def test_each_held_out_meaning_is_held_out_for_one_reason():
    assert set(held_out()) == {
        *("one shape_colour", "one size_shape", "one size_colour", "several shape_colour", "several count_shape"),
        *("two shape_colour", "two size_shape", "two size_colour", "two relation"),
    }
    known = {meaning for group in trained() for meaning in group}
    for name, meanings in held_out().items():
        assert not known & set(meanings)
        assert all(HELD_OUT.kinds(meaning) == {name.split()[1]} for meaning in meanings)
        number = name.split()[0]
        assert all((m.count > 1, m.other is not None) == (number == "several", number == "two") for m in meanings)


def test_pictures_that_are_no_scenes_are_refused():
    with pytest.raises(bd.UserError, match="B, 3, H, W"):
        see(torch.zeros(2, 1, 24, 24))
    with pytest.raises(bd.UserError, match="at least two"):
        bd.data.scenes(1)
