"""Text as numbers: bytes, and pairs of them that often stand together.

A text becomes words (white space separates, capitals count as small letters), a word its UTF-8 bytes behind a space.
Learning merges the pair of neighbours that is most frequent in all texts into a new piece, again and again, until there
are enough pieces or no pair occurs twice (Sennrich et al. 2016, arXiv:1508.07909; on bytes, Radford et al. 2019).
Pieces never reach over a word. Frequent words end as one piece, and any text at all can be written, in the worst case
byte by byte.

The number 0 means "nothing": it fills texts up to one length, and a text of nothing else is no text. Byte b is b + 1,
and the n-th merge 257 + n.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from backdrift.config import kind

NOTHING = 0
FIRST = 257  # the number of the first merge


@kind("text.BytePairs")
@dataclass(frozen=True)
class BytePairs:
    """merges: pairs of numbers, in the order in which they were learned."""

    merges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def learn(cls, texts: Iterable[str], size: int = 1024) -> BytePairs:
        """From these texts, to at most `size` numbers in all. Ties go to the pair of lower numbers."""
        counts = Counter(word for text in texts for word in words(text))
        spelt = {word: spell(word) for word in sorted(counts)}
        pairs, where = Counter(), defaultdict(set)

        def count(word: str, times: int) -> None:
            for pair in pairwise(spelt[word]):
                pairs[pair] += times
                where[pair].add(word)

        for word in spelt:
            count(word, counts[word])
        merges = []
        while FIRST + len(merges) < size and pairs:
            best = min(pairs, key=lambda pair: (-pairs[pair], pair))
            if pairs[best] < 2:
                break
            for word in where.pop(best):
                count(word, -counts[word])
                spelt[word] = merged(spelt[word], best, FIRST + len(merges))
                count(word, counts[word])
            pairs = +pairs  # without those that are gone
            merges.append(best)
        return cls(tuple(merges))

    @property
    def size(self) -> int:
        """How many numbers there are, 0 among them."""
        return FIRST + len(self.merges)

    def encode(self, text: str) -> list[int]:
        """The numbers of a text; [] for one of white space."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        """The numbers of each text."""
        ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        known: dict[str, list[int]] = {}

        def pieces(word: str) -> list[int]:
            if word not in known:
                known[word] = _merge_all(spell(word), ranks)
            return known[word]

        return [[number for word in words(text) for number in pieces(word)] for text in texts]

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of these numbers; those of nothing are skipped, bytes that make no character become U+FFFD."""
        content = bytearray()
        waiting = [number for number in numbers if number != NOTHING][::-1]
        while waiting:
            number = waiting.pop()
            if number < FIRST:
                content.append(number - 1)
            else:
                waiting += self.merges[number - FIRST][::-1]
        return content.decode(errors="replace").strip()


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.lower().split()


def spell(word: str) -> list[int]:
    """A word behind a space, byte by byte."""
    return [byte + 1 for byte in b" " + word.encode()]


def merged(numbers: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """`numbers` with every `pair` of neighbours, from the left, replaced by `new`."""
    found, i = [], 0
    while i < len(numbers):
        here = tuple(numbers[i : i + 2]) == pair
        found.append(new if here else numbers[i])
        i += 2 if here else 1
    return found


def _merge_all(numbers: list[int], ranks: dict[tuple[int, int], int]) -> list[int]:
    """All merges that apply, in the order in which they were learned."""
    while len(numbers) > 1:
        pair = min(pairwise(numbers), key=lambda pair: ranks.get(pair, len(ranks)))
        if pair not in ranks:
            break
        numbers = merged(numbers, pair, FIRST + ranks[pair])
    return numbers
