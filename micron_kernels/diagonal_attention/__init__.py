"""The diagonal of softmax attention between two sequences, applied to the values."""
