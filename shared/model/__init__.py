"""The split model: configuration, checkpoint, views, tower, projector and prompt."""
