"""What single notebooks try out beside the pipeline."""
