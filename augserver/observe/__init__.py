"""What a server lets others see of itself."""
