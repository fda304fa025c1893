"""The objects that users hold: store, topic, group, consumer, message, queue, transaction."""
