"""Child processes: environment, the detached daemon, process groups."""
