"""What Drop-Muon saves, by FLOPs, by the step and to an accuracy."""
