"""One script per claim; see the README beside this file."""
