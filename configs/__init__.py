"""One Python file per experiment: each defines `config()`."""
