"""The method as pure tensor functions: no files, no config."""
