"""The subcommands: each module has its arguments, and `run`, what it does and prints."""
