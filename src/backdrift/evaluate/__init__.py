"""How good are these samples? Distances, precision and recall, label agreement, memorisation; each with its floor."""

from backdrift.evaluate.agreement import Agreement, label_agreement
from backdrift.evaluate.distances import frechet, frechet_of_moments, kernel_distance, sliced_wasserstein
from backdrift.evaluate.exported import ExportedFeatures
from backdrift.evaluate.features import ClassifierFeatures, PixelPCA, Pixels
from backdrift.evaluate.manifold import density_coverage, precision_recall
from backdrift.evaluate.memorisation import Memorisation, memorisation, nearest
from backdrift.evaluate.neighbours import neighbour_agreement
from backdrift.evaluate.report import Evaluation, Row, evaluate, evaluate_two

__all__ = [
    "Agreement",
    "ClassifierFeatures",
    "Evaluation",
    "ExportedFeatures",
    "Memorisation",
    "PixelPCA",
    "Pixels",
    "Row",
    "density_coverage",
    "evaluate",
    "evaluate_two",
    "frechet",
    "frechet_of_moments",
    "kernel_distance",
    "label_agreement",
    "memorisation",
    "nearest",
    "neighbour_agreement",
    "precision_recall",
    "sliced_wasserstein",
]
