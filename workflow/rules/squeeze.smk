rule squeeze:
    """Train a recovery model on the real data, or take published weights."""
    output:
        model="{artifacts}/squeeze/{dataset}/{run}/model.safetensors",
        described="{artifacts}/squeeze/{dataset}/{run}/squeeze.json",
    log:
        "logs/{artifacts}/squeeze/{dataset}/{run}.log",
    benchmark:
        "logs/{artifacts}/benchmarks/squeeze/{dataset}/{run}.tsv"
    retries: 1
    conda:
        "../../environment.yml"
    threads: PLAN.threads
    resources:
        gpu=1,
        runtime=growing(240),
        mem_mb=growing(8000),
    params:
        recipe=PLAN.recipe,
    shell:
        "cda squeeze --run {wildcards.run} --out {output.model} &> {log}"
