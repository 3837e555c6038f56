rule decode:
    """Decode and resize a large data set's validation images once, for every run that tests on them."""
    output:
        images="{artifacts}/decode/{dataset}/{run}/val.npy",
        described="{artifacts}/decode/{dataset}/{run}/val.json",
    log:
        "logs/{artifacts}/decode/{dataset}/{run}.log",
    benchmark:
        "logs/{artifacts}/benchmarks/decode/{dataset}/{run}.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.threads
    resources:
        runtime=PLAN.minutes,
        mem_mb=PLAN.memory,
    params:
        recipe=PLAN.recipe,
    shell:
        "python -m cda decode --run {wildcards.run} --out {output.images} &> {log}"
