"""Tools of every room: checks, discrete choices, randomness, references, style of pictures."""
