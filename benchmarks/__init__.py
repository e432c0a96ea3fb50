"""Where the README's figures come from.

They are ratios of one run on one machine; absolute times are for orientation only.
"""
