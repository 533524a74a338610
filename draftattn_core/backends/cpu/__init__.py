"""CPU: one query block at a time on gathered keys, in float32 by three calls, in 16 bits by torch's fused attention."""
