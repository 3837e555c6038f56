"""Running it: what Snakemake's rules need, costs and limits, the local runner, DVC, the check of a
machine.
"""
