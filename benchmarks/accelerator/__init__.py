"""All that was not measured on a GPU, by one command, in under nine minutes."""
