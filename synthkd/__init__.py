"""synthkd."""
