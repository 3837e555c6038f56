localrules:
    demo,
    report_page,


rule report_page:
    """Snakemake's own report: what ran, when, with which values; the tables and, of the demo, the pictures."""
    input:
        shown=ancient(PLAN.reported()),
        because=PLAN.report_reasons(),
    output:
        "{results}/report.html",
    log:
        "logs/{results}/report.log",
    conda:
        "../../environment.yml"
    shell:
        "snakemake {input.shown} --report {output} --nolock --cores 1 &> {log}"


rule demo:
    """The whole chain on the handwritten digits."""
    input:
        table="results/demo/demo.csv",
        markdown="results/demo/demo.md",
        pictures=["results/demo/demo-distilled.png", "results/demo/demo-progress.png"],
        report="results/demo/report.html",
