"""A distillation, put together from its configuration: networks, transfer set, results, summary."""
