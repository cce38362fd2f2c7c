"""The recipes that ship with synthkd, as data; `synthkd.pipelines.recipes` reads them."""
