"""A campaign: the most valuable cells first, in slices of time, on a machine with one GPU and
without Snakemake.
"""
