"""Generators of labelled images; import them as `synthkd.generators`."""

if __name__ != "synthkd.generators":
    raise ImportError("import synthkd.generators")
