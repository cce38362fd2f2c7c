"""Generators of labelled images; import them as `synthkd.generators`.

`synthkd.generators.build.build_generator` makes any of them from its settings. This module imports nothing, so that
reading settings does not wait for torch.
"""

if __name__ != "synthkd.generators":
    raise ImportError("import synthkd.generators")
