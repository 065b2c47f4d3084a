"""Publishers' layouts, turned into BIDS-like NIfTI folders with a ``datalist.json``."""
