"""One way to time a decoding method and to sum up what it did."""
