localrules:
    published,


rule published:
    """Fetch a recovery model's published weights: here, since compute nodes often have no internet."""
    output:
        model="{artifacts}/squeeze/{dataset}/{run}/model.safetensors",
        described="{artifacts}/squeeze/{dataset}/{run}/squeeze.json",
    log:
        "logs/{artifacts}/squeeze/{dataset}/{run}.log",
    wildcard_constraints:
        run=r"published-[\w.-]+",
    conda:
        "../../environment.yml"
    params:
        recipe=PLAN.recipe,
    shell:
        "cda squeeze --run {wildcards.run} --out {output.model} &> {log}"


rule squeeze:
    """Train a recovery model on the real data."""
    input:
        decoded=PLAN.decoded,
    output:
        model="{artifacts}/squeeze/{dataset}/{run}/model.safetensors",
        described="{artifacts}/squeeze/{dataset}/{run}/squeeze.json",
    log:
        "logs/{artifacts}/squeeze/{dataset}/{run}.log",
    benchmark:
        "logs/{artifacts}/benchmarks/squeeze/{dataset}/{run}.tsv"
    wildcard_constraints:
        run=r"(?!published-)[\w.-]+",
    retries: 1
    conda:
        "../../environment.yml"
    threads: PLAN.squeeze_threads
    resources:
        gpu=PLAN.gpus,
        runtime=growing(240),
        mem_mb=growing(8000),
    params:
        recipe=PLAN.recipe,
    shell:
        "cda squeeze --run {wildcards.run} --gpus {resources.gpu} --out {output.model} &> {log}"
