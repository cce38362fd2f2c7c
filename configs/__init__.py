"""The recipes that ship with synthkd, as data; `synthkd.pipelines.config.recipes` reads them."""
