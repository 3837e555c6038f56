"""The typed models of every file in `config/`, and how they are read."""
