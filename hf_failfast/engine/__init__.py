"""One forward on fixed K/V slots: the same call for target and drafter."""
