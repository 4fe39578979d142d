"""Floor 2: what uses the VMM to judge a kernel."""
