localrules:
    table,


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
        "python -m cda table {wildcards.table:q} --out {output.csv} &> {log}"
