"""CalibAtt (arXiv 2603.05503): masks found once by measured attention mass, from the paper's formulas."""
