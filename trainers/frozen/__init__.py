"""Methods that learn for the classes of training from frozen image features: a few shots' worth."""
