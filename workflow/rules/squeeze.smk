localrules:
    fetch,
    published,


rule fetch:
    """Have the published weights that a training starts from at hand: here, where there is internet."""
    output:
        "{artifacts}/squeeze/weights/{weights}/{model}.json",
    log:
        "logs/{artifacts}/squeeze/weights/{weights}/{model}.log",
    wildcard_constraints:
        weights=r"[\w.:-]+",
        model=r"[\w.-]+",
    conda:
        "../../environment.yml"
    shell:
        "python -m cda fetch {wildcards.weights:q} {wildcards.model:q} --out {output} &> {log}"


rule published:
    """Fetch a recovery model's published weights: here, since compute nodes often have no internet."""
    output:
        model="{artifacts}/squeeze/{dataset}/{run,published-[^/]+}/model.safetensors",
        described="{artifacts}/squeeze/{dataset}/{run}/squeeze.json",
    log:
        "logs/{artifacts}/squeeze/{dataset}/{run}.log",
    conda:
        "../../environment.yml"
    params:
        recipe=PLAN.recipe,
    shell:
        "python -m cda squeeze --run {wildcards.run} --out {output.model} &> {log}"


rule squeeze:
    """Train a recovery model on the real data."""
    input:
        decoded=ancient(PLAN.decoded),
        weights=ancient(PLAN.weights),
    output:
        model="{artifacts}/squeeze/{dataset}/{run,(?!published-)[^/]+}/model.safetensors",
        described="{artifacts}/squeeze/{dataset}/{run}/squeeze.json",
    log:
        "logs/{artifacts}/squeeze/{dataset}/{run}.log",
    benchmark:
        "logs/{artifacts}/benchmarks/squeeze/{dataset}/{run}.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.squeeze_threads
    resources:
        gpu=PLAN.gpus,
        nodes=1,  # several processes exchange gradients within one torchrun
        cpus_per_task=PLAN.squeeze_threads,
        runtime=PLAN.minutes,
        mem_mb=PLAN.memory,
    params:
        recipe=PLAN.recipe,
    shell:
        "python -m cda squeeze --run {wildcards.run} --gpus {resources.gpu} --out {output.model} &> {log}"
