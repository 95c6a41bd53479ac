"""What every room shares: checks, discrete choices, intervals of an action, references."""
