"""One self-contained HTML page per run: no script, no style sheet and no picture outside the file."""
