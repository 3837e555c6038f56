rule continual:
    """Class-incremental learning: a fresh model a step, on the distilled images of the classes seen so far."""
    input:
        parts=ancient(PLAN.shards),
        model=ancient(PLAN.model),
        decoded=ancient(PLAN.decoded),
    output:
        measured=update("{results}/runs/{dataset}/{run,continual-[^/]+}/seed-{seed}.json"),
    log:
        "logs/{results}/runs/{dataset}/{run}/seed-{seed}.log",
    benchmark:
        "logs/{results}/benchmarks/continual/{dataset}/{run}/seed-{seed}.tsv"
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
        "python -m cda continual --run {wildcards.run} --seed {wildcards.seed} --out {output.measured} &> {log}"
