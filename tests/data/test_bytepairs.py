"""Pieces of text: learned by frequency, exact both ways, for any text."""

from collections import Counter
from itertools import pairwise

import pytest

from backdrift.config import from_config, to_config
from backdrift.data.bytepairs import FIRST, BytePairs, merged, spell

TEXTS = ["low low low low low", "lower lower", "newest " * 6, "widest widest widest"]


def slowly(texts, size):
    """The definition, word by word: the most frequent pair, counted anew each time."""
    found = [spell(word) for text in texts for word in text.split()]
    merges = []
    while FIRST + len(merges) < size:
        pairs = Counter(pair for word in found for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        found = [merged(word, best, FIRST + len(merges)) for word in found]
        merges.append(best)
    return tuple(merges)


@pytest.mark.parametrize("size", [FIRST + 5, FIRST + 12, 1024])
def test_merges_are_those_of_the_definition(size):
    assert BytePairs.learn(TEXTS, size).merges == slowly(TEXTS, size)


def test_texts_come_back():
    pieces = BytePairs.learn(TEXTS)
    for text in (*TEXTS, "lowest", "a new word", "überall ❤️ 日本", ""):
        assert pieces.decode(pieces.encode(text)) == " ".join(text.split())
    assert pieces.decode([0, *pieces.encode("low"), 0, 0]) == "low"
    assert pieces.encode("  LOW \n newest ") == pieces.encode("low newest")
    assert pieces.encode(" \t ") == []


def test_frequent_words_are_one_piece_and_others_more():
    pieces = BytePairs.learn(TEXTS)
    assert [len(pieces.encode(word)) for word in ("low", "lower", "newest", "widest")] == [1] * 4
    assert 1 < len(pieces.encode("lowest")) < 7
    assert len(pieces.encode("qqq")) == 4  # a space and three bytes that never met
    assert all(0 < number < pieces.size for number in pieces.encode("low qqq ❤️"))


def test_pieces_are_recorded():
    pieces = BytePairs.learn(TEXTS, FIRST + 3)
    assert len(pieces.merges) == 3 and from_config(to_config(pieces)) == pieces
