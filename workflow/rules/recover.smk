rule recover:
    """Synthesise consecutive IPC indices of every class; a smaller IPC is a prefix of a larger one."""
    input:
        model=PLAN.model,
    output:
        part=directory("{artifacts}/recover/{dataset}/{run,(?!random-|imported-)[^/]+}/part-{part}"),
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
        "cda recover --run {wildcards.run} --part {wildcards.part} --out {output.part} &> {log}"


rule given:
    """Take real images, or released ones, as they are: no network computes."""
    output:
        part=directory("{artifacts}/recover/{dataset}/{run,(random|imported)-[^/]+}/part-{part}"),
    log:
        "logs/{artifacts}/recover/{dataset}/{run}/part-{part}.log",
    benchmark:
        "logs/{artifacts}/benchmarks/recover/{dataset}/{run}/part-{part}.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.threads
    resources:
        runtime=PLAN.minutes,
        mem_mb=PLAN.memory,
    params:
        recipe=PLAN.recipe,
    shell:
        "cda recover --run {wildcards.run} --part {wildcards.part} --out {output.part} &> {log}"
