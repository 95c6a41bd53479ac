"""Tables of bad inputs, by what they are handed to."""
