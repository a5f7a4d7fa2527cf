"""Label files of every common format to one table of labels; a module for each format, `read` recognises them."""
