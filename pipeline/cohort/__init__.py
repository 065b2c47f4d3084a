"""Many scans: found, segmented on one machine or a Ray cluster, and gathered in one table."""
