"""One or two evaluations: objectives under which a network learns where a path leads, and the methods made of them."""

from backdrift.fewstep.consistency import ConsistencyDistillation, EasyConsistency, ImprovedConsistency
from backdrift.fewstep.continuous import ContinuousConsistency
from backdrift.fewstep.flowdistill import AlignYourFlow, PathMap, Trajectory
from backdrift.fewstep.matching import DistributionMatching
from backdrift.fewstep.meanflow import AlphaFlow, MeanFlow, Shortcut
from backdrift.fewstep.methods import Continuous, Discrete, Easy, Method, Paths, Progressive, Rectified, Single
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
    "DistributionMatching",
    "Easy",
    "EasyConsistency",
    "Exact",
    "Halving",
    "ImprovedConsistency",
    "MeanFlow",
    "Method",
    "MidTraining",
    "PathMap",
    "Paths",
    "Progressive",
    "Rectified",
    "Reflow",
    "SemiDiscrete",
    "Shortcut",
    "Single",
    "Trajectory",
]
