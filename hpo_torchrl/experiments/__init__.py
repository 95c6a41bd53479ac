"""A run: configuration, folder, sweeps and commands."""
