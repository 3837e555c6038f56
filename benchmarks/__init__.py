"""Speed of the engines beside plain code that does the same: `make bench`."""
