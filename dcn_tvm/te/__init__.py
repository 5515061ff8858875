"""Mathematics: every kernel as tensor expressions, with no decision about speed but its tiling."""
