"""The datasets: ``rows`` says what is known of each, importing ``table`` registers them all."""
