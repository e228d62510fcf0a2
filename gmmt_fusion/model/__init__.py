"""What a fusion is: its network, its generative method and its saved form."""
