"""Full fine-tuning: FT and its kin, FLYP, WiSE-FT, RAda's own."""
