"""The same training by four trainers, each as its users write it; two workers each, under torchrun."""
