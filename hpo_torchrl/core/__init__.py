"""What every room shares: checks, discrete choices, randomness, references, style of pictures."""
