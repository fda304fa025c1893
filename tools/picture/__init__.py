"""Pictures of diskq that are made from diskq itself: the demo, the layers, the way of a message."""
