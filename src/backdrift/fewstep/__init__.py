"""One or two evaluations: objectives under which a network learns where a path ends, and the methods made of them."""

from backdrift.fewstep.consistency import ConsistencyDistillation, EasyConsistency
from backdrift.fewstep.continuous import ContinuousConsistency
from backdrift.fewstep.methods import Continuous, Discrete, Easy, Method, Progressive, Rectified
from backdrift.fewstep.tangent import Differences, Exact
from backdrift.fewstep.trajectory import Halving, MidTraining, Reflow

__all__ = [
    "ConsistencyDistillation",
    "Continuous",
    "ContinuousConsistency",
    "Differences",
    "Discrete",
    "Easy",
    "EasyConsistency",
    "Exact",
    "Halving",
    "Method",
    "MidTraining",
    "Progressive",
    "Rectified",
    "Reflow",
]
