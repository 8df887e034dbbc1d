"""Other providers' servers, faked."""
