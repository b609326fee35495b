"""Bytes per step and worker of EF21-Muon, counted in the program."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the part `bytes`."""
