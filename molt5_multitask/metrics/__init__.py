"""The metrics of the tasks, each by its published definition."""
