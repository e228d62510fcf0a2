"""Running trackers over benchmarks, scoring what they write, and drawing it."""
