"""The papers, one page each."""
