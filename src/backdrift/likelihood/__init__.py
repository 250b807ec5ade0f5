"""How probable a model finds given data: bounds, densities, and bits per dimension.

`bound` is the variational bound, `density` the log-density by the probability flow, `mmse` the log-density as an
integral of squared errors. All three return a `LogLikelihood`, in nats with a standard error and a map over the
elements. `score` turns them into bits per dimension of pictures.
"""

from backdrift.likelihood.bound import Bound, bound
from backdrift.likelihood.decoder import Decoder, DiscretisedGaussian, GaussianDecoder
from backdrift.likelihood.density import density
from backdrift.likelihood.estimate import LogLikelihood
from backdrift.likelihood.ladder import Continuous, Ladder, Steps
from backdrift.likelihood.mmse import mmse
from backdrift.likelihood.pixels import ByBound, ByFlow, ByMmse, BySteps, Dequantised, Score, score
from backdrift.likelihood.trace import ExactTrace, Hutchinson, HutchPP, Trace

__all__ = [
    "Bound",
    "ByBound",
    "ByFlow",
    "ByMmse",
    "BySteps",
    "Continuous",
    "Decoder",
    "Dequantised",
    "DiscretisedGaussian",
    "ExactTrace",
    "GaussianDecoder",
    "HutchPP",
    "Hutchinson",
    "Ladder",
    "LogLikelihood",
    "Score",
    "Steps",
    "Trace",
    "bound",
    "density",
    "mmse",
    "score",
]
