"""What TensorBoard shows of a run, beside what a method tells of itself: one vocabulary for all
methods, distributions, pictures, and the page "Is it healthy?". docs/tensorboard.md lists it all."""
