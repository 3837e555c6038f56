"""From `config/` to cells, runs with their ids, paths and jobs."""
