rule expert:
    """Train some experts on the real data: networks whose weights after each epoch trajectory matching follows."""
    output:
        part=directory("{artifacts}/expert/{dataset}/{run}/part-{part}"),
    log:
        "logs/{artifacts}/expert/{dataset}/{run}/part-{part}.log",
    benchmark:
        "logs/{artifacts}/benchmarks/expert/{dataset}/{run}/part-{part}.tsv"
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
        "python -m cda expert --run {wildcards.run} --part {wildcards.part} --out {output.part} &> {log}"
