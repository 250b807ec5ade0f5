"""Audits: whether samples can be believed, and what a measurement says of its own object."""

from backdrift.trust.baselines import Found, Reference, baselines
from backdrift.trust.calibrate import Calibration, calibrate
from backdrift.trust.detection import Null, Rate, auroc, pixel_auroc
from backdrift.trust.diagnose import Diagnosis, diagnose
from backdrift.trust.extraction import Extraction, extraction, seeds_agree
from backdrift.trust.klip import Klip, Path, Renoised, klip
from backdrift.trust.law import Limits
from backdrift.trust.ranks import RankReport, against
from backdrift.trust.remedy import advice, remedied
from backdrift.trust.screen import Screening, screen
from backdrift.trust.verdict import Finding, Verdict
from backdrift.trust.weights import PathWeights, Reweighted, path_weights

__all__ = [
    "Calibration",
    "Diagnosis",
    "Extraction",
    "Finding",
    "Found",
    "Klip",
    "Limits",
    "Null",
    "Path",
    "PathWeights",
    "RankReport",
    "Rate",
    "Reference",
    "Renoised",
    "Reweighted",
    "Screening",
    "Verdict",
    "advice",
    "against",
    "auroc",
    "baselines",
    "calibrate",
    "diagnose",
    "extraction",
    "klip",
    "path_weights",
    "pixel_auroc",
    "remedied",
    "screen",
    "seeds_agree",
]
