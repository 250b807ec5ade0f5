"""A product of named fields, each with its own process: a molecule's positions and types, a picture and its label.

Fields are corrupted independently at one shared time, and every verb is the fields' own verb, mapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.posterior import FieldsPosterior
from backdrift.process.base import Process


@kind("process.Product")
@dataclass(frozen=True)
class Product(Process):
    """States are dicts with the same names as `fields`; draws of a field are keyed by its name."""

    fields: Mapping[str, Process]

    def __post_init__(self):
        if not self.fields:
            raise UserError("A Product needs at least one named field.")

    def _names(self, x: Mapping) -> Mapping[str, Process]:
        if set(x) != set(self.fields):
            raise UserError(f"This process has the fields {sorted(self.fields)}, but the state has {sorted(x)}.")
        return self.fields

    def prior(self, like, noise, cond=None):
        return {name: p.prior(like[name], noise.at(name), cond) for name, p in self._names(like).items()}

    def corrupt(self, x, t, noise, start=None):
        return {name: p.corrupt(x[name], t, noise.at(name), start) for name, p in self._names(x).items()}

    def bridge(self, xt, posterior, t, s, noise):
        return {
            name: p.bridge(xt[name], posterior.fields[name], t, s, noise.at(name))
            for name, p in self._names(xt).items()
        }

    def loss(self, posterior, x0, xt, t):
        return sum(p.loss(posterior.fields[name], x0[name], xt[name], t) for name, p in self._names(x0).items())

    def log_likelihood(self, xt, points, t):
        return sum(p.log_likelihood(xt[name], points[name], t) for name, p in self._names(xt).items())

    def belief(self, weights, points):
        return FieldsPosterior({name: p.belief(weights, points[name]) for name, p in self.fields.items()})
