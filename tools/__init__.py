"""The command line and the trainer shell. Backends are imported late, by the command that needs one."""
