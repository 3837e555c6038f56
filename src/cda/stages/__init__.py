"""One file a stage: read inputs, compute, write outputs."""
