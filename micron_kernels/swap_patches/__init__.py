"""Put patches of one frame into another, and normalise on the way."""
