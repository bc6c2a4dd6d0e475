"""Forwards in which each token rounds as it would alone, bit for bit, however many there are."""
