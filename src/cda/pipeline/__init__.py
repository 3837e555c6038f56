"""Running experiments: Snakemake's input functions, costs and time limits, `cda run`, DVC."""
