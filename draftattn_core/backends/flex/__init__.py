"""The backend on FlexAttention."""
