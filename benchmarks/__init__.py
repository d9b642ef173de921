"""Speed and quality, side by side with what people would write otherwise; prints tables."""
