"""What the sub-commands of `steering` do; each module is imported when its command is called."""
