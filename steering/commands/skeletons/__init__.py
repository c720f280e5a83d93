"""What `steering init` copies: configs with a comment for each choice, and a task with its test."""
