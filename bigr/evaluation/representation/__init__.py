"""What the features of a frozen backbone tell: linear probe, nearest neighbours, t-SNE."""
