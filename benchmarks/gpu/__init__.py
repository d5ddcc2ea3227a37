"""What training costs on a GPU."""
