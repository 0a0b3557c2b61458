"""The `millpond` command: one file per group of commands, each built on the public API alone."""
