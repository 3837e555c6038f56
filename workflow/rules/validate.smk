rule validate:
    """Train a fresh model on distilled images and their labels, and test it on real ones."""
    input:
        parts=ancient(PLAN.shards),
        labels=ancient(PLAN.labels),
        model=ancient(PLAN.model),
        decoded=ancient(PLAN.decoded),
    output:
        measured=update("{results}/runs/{dataset}/{run,(?!score|continual)[^/]+}/seed-{seed}.json"),
    log:
        "logs/{results}/runs/{dataset}/{run}/seed-{seed}.log",
    benchmark:
        "logs/{results}/benchmarks/validate/{dataset}/{run}/seed-{seed}.tsv"
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
        "python -m cda validate --run {wildcards.run} --seed {wildcards.seed} --out {output.measured} &> {log}"
