"""What an RS run trains: model, optimiser and schedule. How a model is built and sharded is ``verl.models``'."""
