"""A script for each claim about speed or quality: `python -m benchmarks.NAME [--options]`, from the repository's root.

`python -m benchmarks` lists the scripts, `python -m benchmarks NAME ...` prints their tables from `benchmarks/results`.
Each script has `main`, which measures, prints the tables and writes the results, and `tables`, which makes the tables
from the results. Modules without a `main` are shared by the scripts or are a part of one.
"""
