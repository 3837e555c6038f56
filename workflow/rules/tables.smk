localrules:
    table,
    distilled,
    progress,


rule table:
    """A table as tidy CSV and, in the paper's layout, as Markdown."""
    input:
        PLAN.measurements,
    output:
        csv=report("{results}/{table}.csv", caption="../report/table.rst", category="Tables"),
        markdown="{results}/{table}.md",
    log:
        "logs/{results}/{table}.log",
    conda:
        "../../environment.yml"
    shell:
        "cda table {wildcards.table} --out {output.csv} &> {log}"


rule distilled:
    """The images a table's models are trained on, by class."""
    input:
        PLAN.pictured,
    output:
        report("{results}/{table}-distilled.png", caption="../report/distilled.rst", category="Pictures"),
    log:
        "logs/{results}/{table}-distilled.log",
    conda:
        "../../environment.yml"
    shell:
        "cda figure distilled {wildcards.table} --out {output} &> {log}"


rule progress:
    """How a table's images emerge from noise, method by method."""
    input:
        PLAN.pictured,
    output:
        report("{results}/{table}-progress.png", caption="../report/progress.rst", category="Pictures"),
    log:
        "logs/{results}/{table}-progress.log",
    conda:
        "../../environment.yml"
    shell:
        "cda figure progress {wildcards.table} --out {output} &> {log}"
