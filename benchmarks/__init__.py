"""One folder a claim; the README beside this file has them all in one table."""
