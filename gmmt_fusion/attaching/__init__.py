"""How a fusion gets into a host tracker, and out again without a trace."""
