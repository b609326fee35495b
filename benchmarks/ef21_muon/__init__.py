"""What EF21-Muon sends, what it loses by that, and what it costs."""
