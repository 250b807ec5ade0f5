"""What a training step minimises: one loss per sample, and the times at which it is asked.

`Denoising` is the objective of a training, made of a weight and of what is to be learned beside the mean; `ByLoss`
draws times by the loss there, `OptimalTransport` pairs noise and pictures. `denoising` is the bare loss, for loops of
one's own, and `score_matching` has the losses that need no noise. `fit_schedule` learns a noise schedule,
`noise_ladder` chooses one for a noise-conditional score network.
"""

from backdrift.objective import score_matching
from backdrift.objective.base import Losses, Objective, Samples
from backdrift.objective.classification import Classification
from backdrift.objective.denoising import Denoising, denoising, drop_conditions
from backdrift.objective.importance import ByLoss
from backdrift.objective.learned_schedule import fit_schedule
from backdrift.objective.ncsn import NoiseLadder, noise_ladder
from backdrift.objective.pairing import Independent, OptimalTransport, Pairing
from backdrift.objective.times import Angle, LogitNormal, LogNormalSigma, Times, Uniform
from backdrift.objective.uncertainty import Uncertainty
from backdrift.objective.variance import Hybrid
from backdrift.objective.weights import EDM, P2, Bound, MinSNR, Simple, SoftMinSNR, TruncatedSNR, Weight

__all__ = [
    "EDM",
    "P2",
    "Angle",
    "Bound",
    "ByLoss",
    "Classification",
    "Denoising",
    "Hybrid",
    "Independent",
    "LogNormalSigma",
    "LogitNormal",
    "Losses",
    "MinSNR",
    "NoiseLadder",
    "Objective",
    "OptimalTransport",
    "Pairing",
    "Samples",
    "Simple",
    "SoftMinSNR",
    "Times",
    "TruncatedSNR",
    "Uncertainty",
    "Uniform",
    "Weight",
    "denoising",
    "drop_conditions",
    "fit_schedule",
    "noise_ladder",
    "score_matching",
]
