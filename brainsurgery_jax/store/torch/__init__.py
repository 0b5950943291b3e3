"""What torch saves: files, folders of them, and distributed checkpoints."""
