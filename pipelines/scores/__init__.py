"""Scores of images: of `synthkd evaluate` (sets, features, CAS, table), and of a run while it goes."""
