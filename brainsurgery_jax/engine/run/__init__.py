"""Running planned work: threads held to a budget, outputs on their way to their places, verdicts and events."""
