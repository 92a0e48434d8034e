"""The files of a bundle, written and thinned out."""
