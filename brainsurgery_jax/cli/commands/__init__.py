"""The options of each command, one module per command. The implementation is imported when a command is called."""
