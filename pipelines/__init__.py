if __name__ != "synthkd.pipelines":
    raise ImportError("import synthkd.pipelines")
