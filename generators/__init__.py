if __name__ != "synthkd.generators":
    raise ImportError("import synthkd.generators")
