"""What people look at: pictures, charts and figures of quality."""
