"""What compression costs beside the step."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the part `cost`."""
