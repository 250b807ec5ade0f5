"""One or two evaluations: objectives under which a network learns where a path leads, and the methods made of them."""

from backdrift.fewstep.consistency import ConsistencyDistillation, EasyConsistency
from backdrift.fewstep.continuous import ContinuousConsistency
from backdrift.fewstep.flowdistill import AlignYourFlow, PathMap, Trajectory
from backdrift.fewstep.meanflow import AlphaFlow, MeanFlow, Shortcut
from backdrift.fewstep.methods import Continuous, Discrete, Easy, Method, Progressive, Rectified
from backdrift.fewstep.tangent import Differences, Exact, SemiDiscrete
from backdrift.fewstep.trajectory import Halving, MidTraining, Reflow

__all__ = [
    "AlignYourFlow",
    "AlphaFlow",
    "ConsistencyDistillation",
    "Continuous",
    "ContinuousConsistency",
    "Differences",
    "Discrete",
    "Easy",
    "EasyConsistency",
    "Exact",
    "Halving",
    "MeanFlow",
    "Method",
    "MidTraining",
    "PathMap",
    "Progressive",
    "Rectified",
    "Reflow",
    "SemiDiscrete",
    "Shortcut",
    "Trajectory",
]
