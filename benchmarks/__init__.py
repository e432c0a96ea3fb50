"""What the README's figures come from. Ratios of one run on one machine; absolute times are for orientation only."""
