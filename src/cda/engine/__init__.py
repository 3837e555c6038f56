"""How a stage computes: device, checkpoints, loops, batches, CPU kernels, published weights."""
