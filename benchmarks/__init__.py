"""One folder a subject, each with its page; `README.md` has all claims in a table."""
