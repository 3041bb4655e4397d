"""What knows nothing of training: chat templates, errors, files, logging, processes."""
