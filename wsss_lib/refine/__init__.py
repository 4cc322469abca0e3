"""From localization maps to pseudo-masks: thresholds, CRF, affinity, random walk."""
