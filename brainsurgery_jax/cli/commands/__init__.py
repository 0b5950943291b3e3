"""What each command takes, one module a command. They load what does the work when they are called."""
