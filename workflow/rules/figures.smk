localrules:
    plot,
    picture,


rule plot:
    """A figure of measurements or of the method, for print and for screens."""
    input:
        PLAN.plotted,
    output:
        png=report("{results}/{figure}.png", caption="../report/figure.rst", category="Figures"),
        svg="{results}/{figure}.svg",
    log:
        "logs/{results}/{figure}.log",
    wildcard_constraints:
        figure=one_of(PLAN.plots()),
    conda:
        "../../environment.yml"
    params:
        declared=PLAN.drawn,
    shell:
        "python -m cda figure {wildcards.figure:q} --out {output.png} &> {log}"


rule picture:
    """A figure of distilled images: as they are, or as they emerge."""
    input:
        ancient(PLAN.pictured),
    output:
        report("{results}/{figure}.png", caption="../report/figure.rst", category="Figures"),
    log:
        "logs/{results}/{figure}.log",
    wildcard_constraints:
        figure=one_of(PLAN.pictures()),
    conda:
        "../../environment.yml"
    params:
        declared=PLAN.drawn,
    shell:
        "python -m cda figure {wildcards.figure:q} --out {output} &> {log}"
