"""The method as pure tensor functions and networks: no files, no settings."""
