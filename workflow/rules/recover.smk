rule recover:
    """Synthesise some IPC indices of every class, or take real or imported images in their place."""
    input:
        model=ancient(PLAN.model),
    output:
        part=directory("{artifacts}/recover/{dataset}/{run}/part-{part}"),
    log:
        "logs/{artifacts}/recover/{dataset}/{run}/part-{part}.log",
    benchmark:
        "logs/{artifacts}/benchmarks/recover/{dataset}/{run}/part-{part}.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.threads
    resources:
        gpu=PLAN.gpus,
        runtime=PLAN.minutes,
        mem_mb=PLAN.memory,
    params:
        recipe=PLAN.recipe,
    shell:
        "python -m cda recover --run {wildcards.run} --part {wildcards.part} --out {output.part} &> {log}"
