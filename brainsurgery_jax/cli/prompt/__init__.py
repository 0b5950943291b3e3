"""The interactive prompt: `repl` runs it, `desk` answers what is typed, `terminal` draws it, `glance` looks ahead."""
