"""What is studied: trained networks, and the real images on which they are probed."""
