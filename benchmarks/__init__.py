"""How fast the engines are, beside plain code that does the same.

`python -m benchmarks`, or `make bench`.
"""
