"""The check against public CLIP outputs: what they must give, and what the methods make of them."""
