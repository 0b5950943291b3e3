"""Pictures of checkpoints, drawn by matplotlib, and a report of them as one page of HTML."""
