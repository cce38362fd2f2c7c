"""Parts of `synthkd evaluate`: the sets and their features, the classification accuracy score, and the table."""

from synthkd.pipelines.scores.cas import classification_accuracy_scores
from synthkd.pipelines.scores.image_sets import Networks, OpenedSet, build_networks, open_sets, take_features
from synthkd.pipelines.scores.table import score_lines

__all__ = [
    "Networks",
    "OpenedSet",
    "build_networks",
    "classification_accuracy_scores",
    "open_sets",
    "score_lines",
    "take_features",
]
