"""From an encoder to answers about whole studies: views, model, training samples, predictions."""
